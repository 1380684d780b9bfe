"""What an engine is and can do, found out by asking it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from saga import wire
from saga.gateway.kv_events import reachable
from saga.gateway.scrape import PAGE_LIMIT, parse_kv_capacity
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

EngineKind = Literal["vllm", "sglang", "saga", "openai"]
T = TypeVar("T")

CONTROL = "control"
"""It has SAGA's control routes: retain, release, ..."""
HINTS = "hints"
"""It obeys the hints in requests."""
METRICS = "metrics"
KV_EVENTS = "kv_events"
"""It publishes what becomes of its KV, where the gateway can follow."""

HOST_TIER = "host_tier"
"""KV that its device has no room for is kept in its host's memory."""
SHARED_TIER = "shared_tier"
"""And where other engines can read it."""

PROBE_TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=10.0, chunk_s=10.0, total_s=15.0)
MAX_MODELS = 1_000
MAX_RANKS = 64

_NO_MODELS = "It does not list its models, so that requests for any are sent to it."
_NO_KEY = "It refuses the API key."
_NO_METRICS = "It has no metrics: its load is known from the requests sent to it only."
_NO_CAPACITY = "It does not tell the size of its KV memory: the configured size is assumed."
_NO_SEQS = "It does not tell how many requests it runs at once: the configured number is assumed."
_NO_CONTROL = "It has no SAGA plugin: its own policy decides which KV it keeps."
_NO_EVENTS = "It publishes no KV events: evictions show only in the usage of later answers."
FAR_EVENTS = (
    "It publishes KV events, but on no TCP port of its own host: "
    "evictions show only in the usage of later answers."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    kind: EngineKind
    version: str | None
    models: tuple[str, ...]
    """Empty: unknown."""
    kv_capacity_tokens: int | None
    max_num_seqs: int | None
    capabilities: frozenset[str]
    kv_event_endpoints: tuple[str, ...]
    """Where to connect to for its KV events, one for each of its publishers."""
    host_kv_tokens: int | None
    """Room in its host tier, of those that have one."""
    shared_tier: str | None
    """The same for all engines that read each other's KV."""
    notes: tuple[str, ...]
    """Everything it lacks, each in one sentence."""


class _Model(msgspec.Struct):
    id: str
    owned_by: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Version(msgspec.Struct):
    version: str


class ServerInfo(msgspec.Struct):
    """SGLang's; the first field is what it is recognised by."""

    max_total_num_tokens: int
    max_running_requests: int | None = None
    version: str | None = None
    kv_events_config: Any = None
    """A JSON object, as text."""
    dp_size: Any = None
    disable_radix_cache: Any = None


class _Stats(msgspec.Struct):
    """The control route's; of its fields only these matter here."""

    kv_capacity_tokens: int | None = None
    max_num_seqs: int | None = None
    events_endpoint: str | None = None
    host_kv_tokens: int | None = None
    shared_tier: Annotated[str, Meta(min_length=1, max_length=1_024)] | None = None


class _KVEventSource(msgspec.Struct):
    endpoint: str


class _SglangEvents(msgspec.Struct):
    publisher: str = "null"
    endpoint: str = "tcp://*:5557"


async def probe(
    upstream: Upstream, url: str, api_key: str | None, *, timeouts: Timeouts = PROBE_TIMEOUTS
) -> EngineInfo:
    """Asks an engine for all that can be known of it.

    What it does not answer is a note. Raises UpstreamError only if it cannot be reached, or is
    behind something that answers for it with a 5xx.
    """
    ask = Asker(upstream, url, api_key, timeouts)
    status, body = await ask.get("/v1/models")
    if status >= 500:
        raise UpstreamError("broken", f"/v1/models answered {status}")
    models = _decode(body, _Models) if status == 200 else None
    version, server, stats, events, page = await asyncio.gather(
        ask.json("/version", _Version),
        ask.server_info(),
        ask.json(f"{wire.CONTROL}/stats", _Stats, body=b"{}"),
        ask.kv_event_sources(),
        ask.page("/metrics"),
    )
    listed = models.data[:MAX_MODELS] if models else []
    told = stats or _Stats()
    capacity = _known(
        told.kv_capacity_tokens,
        server.max_total_num_tokens if server else None,
        parse_kv_capacity(page or b""),
    )
    num_seqs = _known(told.max_num_seqs, server.max_running_requests if server else None)
    sources = [*events, *_sglang_sources(server), told.events_endpoint]
    published = [endpoint for endpoint in sources if endpoint is not None]
    endpoints = [place for place in (reachable(one, url) for one in published) if place is not None]
    host_tokens = _known(told.host_kv_tokens)
    found = {
        CONTROL: stats,
        HINTS: stats,
        METRICS: page,
        KV_EVENTS: endpoints or None,
        HOST_TIER: host_tokens,
        SHARED_TIER: told.shared_tier,
    }
    notes = {
        _NO_KEY: status in (401, 403),
        _NO_MODELS: not listed and status not in (401, 403),
        _NO_METRICS: page is None,
        _NO_CAPACITY: capacity is None,
        _NO_SEQS: num_seqs is None,
        _NO_CONTROL: stats is None,
        _NO_EVENTS: not published,
        FAR_EVENTS: bool(published) and not endpoints,
    }
    return EngineInfo(
        kind=_kind(listed, server, stats, page),
        version=version.version if version else server.version if server else None,
        models=tuple(model.id for model in listed),
        kv_capacity_tokens=capacity,
        max_num_seqs=num_seqs,
        capabilities=frozenset(name for name, what in found.items() if what is not None),
        kv_event_endpoints=tuple(dict.fromkeys(endpoints))[:MAX_RANKS],
        host_kv_tokens=host_tokens,
        shared_tier=told.shared_tier,
        notes=tuple(note for note, applies in notes.items() if applies),
    )


class Asker:
    """One engine and how it is asked; None is the answer of one that does not know."""

    def __init__(
        self, upstream: Upstream, url: str, api_key: str | None, timeouts: Timeouts
    ) -> None:
        self._upstream = upstream
        self._url = url
        self._api_key = api_key
        self._timeouts = timeouts

    async def get(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        return await self._upstream.fetch(
            self._url,
            "GET" if body is None else "POST",
            path,
            api_key=self._api_key,
            body=body,
            timeouts=self._timeouts,
            limit=PAGE_LIMIT,
        )

    async def page(self, path: str, body: bytes | None = None) -> bytes | None:
        try:
            status, answer = await self.get(path, body)
        except UpstreamError:
            return None
        return answer if status == 200 else None

    async def json(self, path: str, kind: type[T], body: bytes | None = None) -> T | None:
        answer = await self.page(path, body)
        return None if answer is None else _decode(answer, kind)

    async def server_info(self) -> ServerInfo | None:
        """SGLang's, under its newer and its older name."""
        return await self.json("/server_info", ServerInfo) or await self.json(
            "/get_server_info", ServerInfo
        )

    async def kv_event_sources(self) -> list[str]:
        """vLLM 0.32 tells them by rank, other releases in a list."""
        answer = await self.page("/kv_event_sources") or b""
        by_rank = _decode(answer, dict[str, _KVEventSource]) or {}
        sources = _decode(answer, list[_KVEventSource]) or [*by_rank.values()]
        return [source.endpoint for source in sources]


def _sglang_sources(server: ServerInfo | None) -> list[str]:
    """Its ranks publish on ports in a row."""
    if server is None or not isinstance(server.kv_events_config, str):
        return []
    config = _decode(server.kv_events_config.encode(), _SglangEvents) or _SglangEvents()
    host, _, port = config.endpoint.rpartition(":")
    if config.publisher == "null" or not re.fullmatch("[0-9]{1,5}", port):
        return []
    ranks = server.dp_size if isinstance(server.dp_size, int) else 1
    return [f"{host}:{int(port) + rank}" for rank in range(min(max(1, ranks), MAX_RANKS))]


def _decode(answer: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _known(*candidates: int | None) -> int | None:
    """The first one that is a size."""
    return next((value for value in candidates if value and value > 0), None)


def _kind(
    models: list[_Model], server: ServerInfo | None, stats: _Stats | None, page: bytes | None
) -> EngineKind:
    owner = (models[0].owned_by or "").lower() if models else ""
    page = page or b""
    if owner == "saga":
        return "saga"
    if owner == "vllm" or b"\nvllm:" in page:
        return "vllm"
    if owner == "sglang" or server is not None or b"\nsglang:" in page:
        return "sglang"
    return "saga" if stats is not None else "openai"
