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
