"""What is at an address, whether SAGA can use it, and what is missing there."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from saga import wire
from saga.gateway.findings import ANSWERS, Finding, Seen, findings
from saga.gateway.probe import PROBE_TIMEOUTS, Asker, EngineInfo, EngineKind, probe
from saga.gateway.scrape import missing_from, parse_prefix_caching
from saga.gateway.trial import EVENTS_S, RefusedError, Trial, try_out
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

MAX_ENGINES: Final = 1_000
"""Of a gateway."""
MAX_SAID: Final = 200
"""Characters of an error of an engine."""

_MODELS: Final = "/v1/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found at one address."""

    url: str
    problem: str | None = None
    """Why it cannot be used; None: it can."""
    kind: EngineKind | Literal["gateway"] | None = None
    version: str | None = None
    models: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Of the engine's control route."""


class _GatewayEngine(msgspec.Struct):
    """What a gateway tells of one of its engines."""

    name: str
    state: str
    degraded: list[str]
    error: str | None = None
    kind: str | None = None
    version: str | None = None
    models: list[str] = []
    kv_capacity_tokens: int | None = None


class _GatewayEngines(msgspec.Struct):
    engines: list[_GatewayEngine]


class _Version(msgspec.Struct):
    version: str


class _Unusable(Exception):
    """It answers, but not as something that SAGA can use."""


async def diagnose(
    upstream: Upstream,
    url: str,
    api_key: str | None,
    *,
    requests: bool = True,
    timeouts: Timeouts = PROBE_TIMEOUTS,
    events_s: float = EVENTS_S,
) -> Diagnosis:
    """Asks whatever is at ``url`` (without ``/v1``) for all that matters to SAGA.

    ``requests``: a model may be asked, for two or three tokens. Raises ValueError for a key that no
    header can hold; everything else is a finding.
    """
    patient = _Patient(upstream, url, api_key, timeouts, events_s)
    try:
        return await patient.gateway() or await patient.engine(requests=requests)
    except UpstreamError as error:
        return Diagnosis(url=url, problem=_why(error, url))
    except _Unusable as error:
        return Diagnosis(url=url, problem=str(error))


class _Patient:
    """One address, and how it is asked."""

    def __init__(
        self,
        upstream: Upstream,
        url: str,
        api_key: str | None,
        timeouts: Timeouts,
        events_s: float,
    ) -> None:
        self._upstream = upstream
        self._url = url
        self._api_key = api_key
        self._timeouts = timeouts
        self._events_s = events_s
        self._ask = Asker(upstream, url, api_key, timeouts)

    # ---- a gateway

    async def gateway(self) -> Diagnosis | None:
        """None if it is none. Raises UpstreamError if nothing answers."""
        status, body = await self._ask.get(f"{wire.CONTROL}/engines")
        told = _decoded(body, _GatewayEngines) if status == 200 else None
        if told is None:
            return None
        version = await self._ask.json("/version", _Version)
        engines = told.engines[:MAX_ENGINES]
        up = any(engine.state == "up" for engine in engines)
        return Diagnosis(
            url=self._url,
            problem=None if up else "it is a SAGA gateway, and none of its engines is up",
            kind="gateway",
            version=version.version if version else None,
            models=tuple(dict.fromkeys(model for one in engines for model in one.models)),
            findings=tuple(map(_of_gateway, engines)),
        )

    # ---- an engine

    async def engine(self, *, requests: bool) -> Diagnosis:
        """Raises _Unusable, and UpstreamError."""
        await self._check_models()
        info = await probe(self._upstream, self._url, self._api_key, timeouts=self._timeouts)
        if info.kind in ("openai", "saga") and not info.models:
            raise _Unusable("it lists no models and is no engine that SAGA knows")
        seen = await self._look(info)
        problem = None
        if not requests:
            seen = replace(seen, untried="not tried (--no-requests)")
        elif not info.models:
            seen = replace(seen, untried="not tried, as it lists no model to ask")
        else:
            try:
                seen = replace(seen, trial=await self._trial(seen))
            except UpstreamError as error:
                problem = f"it does not serve a request: {_why(error, self._url)}"
                seen = replace(seen, untried="not found out")
            except RefusedError as error:
                said = self._hushed(str(error))
                if error.status in (401, 403) or error.status >= 500:
                    problem = f"it does not serve a request: {said}"
                seen = replace(seen, untried=said)
        return Diagnosis(
            url=self._url,
            problem=problem,
            kind=info.kind,
            version=info.version,
            models=info.models,
            findings=findings(seen),
            figures=seen.figures or {},
        )

    async def _check_models(self) -> None:
        """Raises _Unusable if this is certainly no engine that can be used, and says why."""
        status, body = await self._ask.get(_MODELS)
        if status in (401, 403):
            text = "it refuses the API key" if self._api_key else "it wants an API key: --api-key"
            raise _Unusable(f"{text} (it answers {status})")
        if 300 <= status < 400:
            raise _Unusable(f"{_MODELS} is elsewhere (it answers {status}): use that address")
        if status >= 500:
            raise _Unusable(f"{_MODELS} answers {status}: no engine is up behind that address")
        if body.lstrip()[:1] == b"<":
            raise _Unusable(f"{_MODELS} is a web page ({status}), not the list of an OpenAI API")

    async def _look(self, info: EngineInfo) -> Seen:
        page, (status, stats), server = await asyncio.gather(
            self._ask.page("/metrics"), self._stats(), self._ask.server_info()
        )
        caching, block_size = parse_prefix_caching(page or b"")
        if server is not None and isinstance(server.disable_radix_cache, bool):
            caching = not server.disable_radix_cache
        return Seen(
            info=info,
            block_size=block_size,
            prefix_caching=caching,
            missing_metrics=None if page is None else missing_from(page),
            figures=_decoded(stats, dict[str, Any]) if status == 200 else None,
            idle_plugin=status == 501,
            trial=None,
            untried="",
        )

    async def _stats(self) -> tuple[int, bytes]:
        try:
            return await self._ask.get(f"{wire.CONTROL}/stats", b"{}")
        except UpstreamError:
            return 0, b""

    async def _trial(self, seen: Seen) -> Trial:
        return await try_out(
            self._upstream,
            self._url,
            self._api_key,
            seen.info,
            block_size=seen.block_size,
            timeouts=self._timeouts,
            events_s=self._events_s,
        )

    def _hushed(self, text: str) -> str:
        """An error's text, without the key, should it be in it."""
        text = text.replace(self._api_key, "***") if self._api_key else text
        return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]}..."


def advice(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """What is wrong with them together, as the engines of one gateway."""
    engines = [one for one in diagnoses if one.problem is None and one.kind != "gateway"]
    different = {frozenset(one.models) for one in engines if one.models}
    if len(different) < 2:
        return []
    return [
        "These engines list different models. A gateway sends any request to any of its engines: "
        "give each set of models a gateway of its own."
    ]


def _of_gateway(engine: _GatewayEngine) -> Finding:
    known = [engine.kind, engine.version]
    if engine.kv_capacity_tokens is not None:
        known.append(f"{engine.kv_capacity_tokens:,} KV tokens")
    found = engine.error or ", ".join(text for text in known if text)
    return Finding(
        what=engine.name,
        answer=ANSWERS[engine.state == "up"],
        found=f"{engine.state}: {found}" if found else engine.state,
        means=" ".join(engine.degraded) or ("It lacks nothing." if engine.state == "up" else ""),
        fix=None,
    )


def _why(error: UpstreamError, url: str) -> str:
    """What is wrong, for somebody who may have mistaken the address."""
    place, cause = urlsplit(url).netloc, error.__cause__
    if isinstance(cause, socket.gaierror):
        return f"there is no host of that name ({urlsplit(url).hostname})"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted here: {cause.verify_message}; see SSL_CERT_FILE"
    if isinstance(cause, ssl.SSLError):
        return f"it does not speak TLS as asked ({cause.reason}): is it http://{place}?"
    if f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return f"nothing listens at {place}"
    if error.kind == "broken" and url.startswith("http://"):
        return f"{error}: is it an HTTP server, or https://{place}?"
    return str(error)


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        return None
