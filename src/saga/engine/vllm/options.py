"""How the plugin is set up: environment variables, or ``--additional-config '{"saga": {...}}'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from saga.config import ConfigError

VARIABLES: Final = {
    "preset": "SAGA_ENGINE_PRESET",
    "tenant_share": "SAGA_ENGINE_TENANT_SHARE",
    "events_endpoint": "SAGA_EVENTS_ENDPOINT",
    "offload_min_gap_s": "SAGA_ENGINE_OFFLOAD_MIN_GAP_S",
    "offload_min_pressure": "SAGA_ENGINE_OFFLOAD_MIN_PRESSURE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginOptions:
    """Whatever is not given is as here."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    preset: str = "saga"
    """Its eviction policy ranks idle sessions; its retention policy bounds what is learned."""
    tenant_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The part of the KV memory that one of several tenants can have protected."""
    events_endpoint: str | None = None
    """Where events are published (ZMQ, ``tcp://*:5610`` or ``ipc://...``); None: nowhere."""
    offload_min_gap_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Sessions that are back sooner are not copied to the host tier, unless engines share it."""
    offload_min_pressure: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Nor are any while less of the device's blocks is used or claimed."""


def read_options(environment: Mapping[str, str], additional: object) -> PluginOptions:
    """The command line goes before the environment. Raises ConfigError that names the option."""
    given: Any = {
        name: environment[variable]
        for name, variable in VARIABLES.items()
        if environment.get(variable)
    }
    if isinstance(additional, Mapping) and "saga" in additional:
        ours = additional["saga"]
        given = {**given, **ours} if isinstance(ours, Mapping) else ours
    try:
        return TypeAdapter(PluginOptions).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(["saga", *(str(part) for part in first["loc"])])
        raise ConfigError(f"engine plugin: {name} = {first['input']!r}: {first['msg']}") from error
