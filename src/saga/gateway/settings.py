"""The gateway's settings: one YAML file, environment variables and flags, checked as a whole.

A flag wins over the environment, the environment over the file, the file over the defaults; values
are combined key by key, lists are replaced. ``SAGA_SERVER__PORT`` sets ``server.port``. Other
variables that begin with ``SAGA_`` and have no double underscore are not the gateway's: Kubernetes
makes some for a service of that name. An empty variable counts as not set; ``null``, and lists and
mappings in YAML's flow style, can be written in variables and flags. A tenant's name in a variable
is taken as written.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from saga.config import ConfigError, load_preset
from saga.gateway.document import Loc, problems
from saga.gateway.keys import TenantName, checked_hash
from saga.gateway.layers import Layers

PREFIX: Final = "SAGA_"


class SettingsError(ValueError):
    """Settings that cannot be used: every problem, one a line, each with its place."""

    def __init__(self, found: list[str]) -> None:
        super().__init__("\n".join(found))
        self.problems = tuple(found)


# ---- kinds of values


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _several(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _engine_url(text: str) -> str:
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is none, a broken IPv6 address
        good = False
    if not good or url.username or url.password or url.query or url.fragment:
        raise ValueError("must be http(s)://HOST[:PORT][/PATH]; a key goes into engines.api_key")
    return text.rstrip("/")


_Number = BeforeValidator(_number)
Count = Annotated[int, _Number, Field(ge=1)]
Port = Annotated[int, _Number, Field(ge=0, le=65535)]
Seconds = Annotated[float, _Number, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, _Number, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, _Number, Field(gt=0, allow_inf_nan=False)]
Urls = Annotated[tuple[Annotated[str, AfterValidator(_engine_url)], ...], BeforeValidator(_several)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")]
HeaderNames = Annotated[tuple[HeaderName, ...], BeforeValidator(_several)]
Source = Annotated[str, Field(pattern=r"^(header:[A-Za-z0-9_-]+|body:[A-Za-z0-9_.-]+)$")]


# ---- sections


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_means_defaults(cls, values: Any) -> Any:
        return {} if values is None else values


class ServerSettings(Section):
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8400
    """Port to listen on; 0: any free one."""
    max_body_mib: Count = 64
    """Largest request body, MiB."""
    max_header_kib: Count = 64
    """Largest sum of a request's headers, KiB."""
    keepalive_s: Seconds = 10.0
    """Between signs of life on the stream of a request that waits, seconds."""
    body_timeout_s: Seconds = 30.0
    """For a client to send its request body, seconds."""
    drain_s: Seconds = 600.0
    """For streams to finish at shutdown, seconds."""


class EngineSettings(Section):
    urls: Urls = ()
    """Base URLs of engines. Those of ``file`` and ``dns`` come in addition."""
    file: Path | None = None
    """File of engine URLs, watched for changes."""
    dns: Annotated[str, Field(pattern=r"^(dns://)?[A-Za-z0-9._-]+:[0-9]{1,5}$")] | None = None
    """NAME:PORT; every address of the name is an engine. Asked again and again."""
    api_key: SecretStr | None = None
    """Key that the engines ask for; ``env:NAME`` takes it from a variable."""
    scrape_s: Seconds = 2.0
    """Between two readings of an engine's load, seconds."""
    kv_capacity_tokens: Count | None = None
    """KV memory of each engine, tokens; null: what the engine says, or 200000 if it does not."""
    max_num_seqs: Count = 256
    """Largest batch, requests, of an engine that does not tell its own."""

    @field_validator("api_key", mode="before")
    @classmethod
    def _from_environment(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str) or not value.startswith("env:"):
            return value
        name = value.removeprefix("env:")
        found = (info.context or {}).get("environ", {}).get(name)
        if not found:
            raise ValueError(f"environment variable {name} is not set")
        return found


class QueueSettings(Section):
    max_requests: Count = 10_000
    """Requests that may wait at once."""
    max_wait_s: Seconds = 570.0
    """Longest wait for an engine, seconds: before SDKs give up (600), they are told to come back.
    Longer than those who wait for admission have patience (``patience_s``)."""
    max_wait_streaming_s: Seconds = 1800.0
    """The same for streams, which are kept alive meanwhile, seconds."""


class TimeoutSettings(Section):
    """What an engine is given, seconds; null: no limit."""

    connect_s: Seconds | None = 5.0
    """To accept a connection."""
    first_byte_s: Seconds | None = 600.0
    """To begin its answer."""
    chunk_s: Seconds | None = 300.0
    """From one piece of the answer to the next."""
    total_s: Seconds | None = 3600.0
    """For the whole answer."""


class RetrySettings(Section):
    max: Annotated[int, _Number, Field(ge=0)] = 2
    """Further attempts for one request."""
    budget_fraction: Fraction = 0.2
    """Further attempts as a share of all requests, at most."""


class SessionSettings(Section):
    idle_s: Seconds = 1800.0
    """A session silent for this long is over, seconds."""
    max_sessions: Count = 100_000
    """Sessions remembered at once."""
    prefetch_mib: Annotated[int, _Number, Field(ge=0)] = 0
    """Room for what sessions last asked, MiB: it is asked again, for one token, to bring KV back
    from a host tier shortly before a session returns. 0: nothing is kept."""


class IdentitySettings(Section):
    trust_tenant_header: bool = False
    """Take the tenant from a header; only behind something that sets it."""
    extra_headers: HeaderNames = ()
    """Headers that name the session, the most trusted first."""
    mapping: dict[Literal["workflow", "session", "parent"], Source] = {}
    """Where a request names them: ``header:NAME`` or ``body:FIELD.FIELD``."""
    response_headers: bool = True
    """Tell session, engine and decision in answers."""


class AuthSettings(Section):
    keys_file: Path | None = None
    """File of API keys, hashed. Without one nobody is asked for a key, and only loopback served."""
    admin_key_hash: SecretStr | None = None
    """``sha256:...`` of a key for administration, besides those in the file."""
    allow_no_keys: bool = False
    """Serve other machines without keys; only behind something that checks who they are."""

    @field_validator("admin_key_hash")
    @classmethod
    def _is_hash(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            checked_hash(value.get_secret_value())
        return value


class TenantSettings(Section):
    weight: Weight = 1.0
    """Share of the engines relative to the other tenants'."""
    max_concurrent: Count | None = None
    """Requests at once; null: no limit."""
    requests_per_min: Count | None = None
    """Requests a minute, as many at once; null: no limit."""
    tokens_per_min: Count | None = None
    """Tokens a minute, as many at once; null: no limit."""


class RecordSettings(Section):
    file: Path | None = None
    """Where to write the trace of this run."""


class Settings(Section):
    """Everything the gateway can be told. Paths are relative to the working directory."""

    server: ServerSettings = ServerSettings()
    preset: str = "saga"
    """Preset of policies, or ``NAME+KEY=VALUE+...``."""
    engines: EngineSettings = EngineSettings()
    queue: QueueSettings = QueueSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: RetrySettings = RetrySettings()
    sessions: SessionSettings = SessionSettings()
    identity: IdentitySettings = IdentitySettings()
    auth: AuthSettings = AuthSettings()
    tenants: dict[TenantName, TenantSettings] = {}
    """By name; a tenant that is not here has the defaults."""
    record: RecordSettings = RecordSettings()

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, name: str) -> str:
        try:
            load_preset(name)
        except ConfigError:
            raise
        except Exception as error:  # a policy of another package may raise anything when imported
            raise ValueError(f"preset {name}: {type(error).__name__}: {error}") from error
        return name

    @model_validator(mode="after")
    def _no_keys_loopback_only(self) -> Self:
        host, auth = self.server.host, self.auth
        if auth.keys_file or auth.allow_no_keys or _is_loopback(host):
            return self
        message = (
            "other machines can reach {host} and there are no API keys: set auth.keys_file, "
            "or server.host to 127.0.0.1, or auth.allow_no_keys if something in front checks keys"
        )
        raise PydanticCustomError("open", message, {"host": host, "loc": ("server", "host")})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- from where


def load_settings(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]
) -> Settings:
    """The settings of a file, an environment and flags (``server.port``; None: not given).

    Raises ``SettingsError`` with all problems. Rules between sections are judged once each section
    is in order.
    """
    variables = {name: loc for name in sorted(environ) if (loc := _variable_loc(name))}
    layers = Layers()
    layers.add_file(path)
    layers.add_values({name: (loc, environ[name]) for name, loc in variables.items()})
    layers.add_values({f"flag {name}": (tuple(name.split(".")), flags[name]) for name in flags})
    # A section with every line commented out is there, and is null.
    values = {key: value for key, value in layers.values.items() if value is not None}
    found = layers.problems
    try:
        settings = Settings.model_validate(values, context={"environ": environ})
    except ValidationError as error:
        raise SettingsError(found + problems(error, Settings, layers.place)) from None
    if found:
        raise SettingsError(found)
    return settings


def _variable_loc(name: str) -> Loc | None:
    """The key that a variable sets; None if the variable is not the gateway's."""
    if not name.startswith(PREFIX):
        return None
    parts = name.removeprefix(PREFIX).split("__")
    section = parts[0].lower()
    if len(parts) == 1 and section not in Settings.model_fields:
        return None
    written = 1 if section == "tenants" else None
    return tuple(part if at == written else part.lower() for at, part in enumerate(parts))


# ---- for showing


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file."""
    return Settings.model_json_schema()


def redacted(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, secrets hidden."""
    return settings.model_dump(mode="json")
