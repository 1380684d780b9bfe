"""What an engine has of all that SAGA can use, and what SAGA does without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from saga.gateway.probe import CONTROL, FAR_EVENTS, EngineInfo, EngineKind
from saga.gateway.trial import Trial

Answer = Literal["yes", "no", "unknown"]
MAX_FIGURES: Final = 16
ANSWERS: Final[Mapping[bool | None, Answer]] = {True: "yes", False: "no", None: "unknown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that an engine has or lacks."""

    what: str
    answer: Answer
    found: str
    """What was seen, in a few words; may be empty."""
    means: str
    """What SAGA does with it or, unless the answer is yes, without it."""
    fix: str | None
    """What brings it where it is missing, if something does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that was found out about one engine; None: that could not be found out."""

    info: EngineInfo
    block_size: int | None
    prefix_caching: bool | None
    missing_metrics: Sequence[str] | None
    """None: it has no page of metrics."""
    figures: Mapping[str, Any] | None
    """Of its control route."""
    idle_plugin: bool
    """The control routes are there, and nothing that they could control."""
    trial: Trial | None
    untried: str
    """Why there was no trial."""


class _Topic(NamedTuple):
    what: str
    has: str
    lacks: str


MODELS: Final = _Topic(
    "models",
    "Requests go to any engine, whatever their model: all engines need the same ones.",
    "Requests go to any engine, whatever their model.",
)
CAPACITY: Final = _Topic(
    "KV memory",
    "Workflows are admitted, and sessions placed, by how much of it is taken.",
    "SAGA assumes engines.kv_capacity_tokens, or 200,000 tokens.",
)
BATCH: Final = _Topic(
    "batch size",
    "No more requests than that are sent at once.",
    "SAGA assumes engines.max_num_seqs, 256 if that is not set.",
)
PREFIXES: Final = _Topic(
    "prefix cache",
    "A session finds its context again where its last step ran.",
    "Without it every step computes its whole context again, wherever it goes.",
)
ANSWERING: Final = _Topic(
    "answers requests",
    "Requests can be sent there.",
    "Whether requests are served was not seen.",
)
CACHED: Final = _Topic(
    "cached tokens in usage",
    "Hit rates are known, and tenants are charged for what was really computed.",
    "Without them the hit rate is not known, and what a step costs its tenant is estimated.",
)
STREAMED: Final = _Topic(
    "usage in streams",
    "Clients have to ask for it (stream_options.include_usage), unless vLLM is started with "
    "--enable-force-include-usage.",
    "Without it the tokens of streams are estimated from their length.",
)
METRICS: Final = _Topic(
    "load metrics",
    "SAGA knows how full its memory is and whether requests wait inside.",
    "Without all of them its load is known from the requests sent to it only.",
)
EVENTS: Final = _Topic(
    "KV events",
    "Evictions are known before a session returns.",
    "Without them evictions show only in the usage of later answers.",
)
NAMES: Final = _Topic(
    "session id in KV events",
    "X-Session-ID goes with each request, and tells whose KV an event is about.",
    "Without it events do not tell whose KV was evicted.",
)
PLUGIN: Final = _Topic(
    "SAGA plugin",
    "KV is retained while its session is in a tool call, and released when it is over.",
    "Without it the engine's own policy decides which KV it keeps.",
)
HINTED: Final = _Topic(
    "hints in requests",
    "Each request tells its session, and when that is usually back (vllm_xargs).",
    "Without them the engine knows neither when a session returns nor that it is over.",
)
HOSTED: Final = _Topic(
    "host tier",
    "KV of idle sessions is copied to host memory, and brought back before they return where "
    "sessions.prefetch_mib is set.",
    "Without it KV that was evicted is computed again.",
)
SHARED: Final = _Topic(
    "shared tier",
    "A session that moves finds its KV at each engine that has the same one.",
    "Without it KV is computed again where a session moves to.",
)
PRIORITIES: Final = _Topic(
    "priority scheduling",
    "",
    "Not tried, and not needed: SAGA orders requests before it sends them.",
)

_KV_EVENTS: Final = '--kv-events-config \'{"enable_kv_cache_events":true,"publisher":"zmq"}\''
FIXES: Final[Mapping[EngineKind, Mapping[_Topic, str]]] = {
    "vllm": {
        BATCH: "set engines.max_num_seqs to the engine's --max-num-seqs",
        PREFIXES: "--enable-prefix-caching",
        CACHED: "--enable-prompt-tokens-details",
        METRICS: "leave out --disable-log-stats",
        EVENTS: _KV_EVENTS,
        NAMES: "vLLM 0.32 or newer",
        HOSTED: "--kv-transfer-config with HostTierSpec of saga.engine.vllm.offload",
        SHARED: "--kv-transfer-config with SharedTierSpec and a folder that engines share",
        PLUGIN: "VLLM_PLUGINS=saga,saga_endpoint and --scheduler-cls saga.engine.vllm.Scheduler",
    },
    "sglang": {
        PREFIXES: "leave out --disable-radix-cache",
        CACHED: "--enable-cache-report",
        METRICS: "--enable-metrics",
        EVENTS: '--kv-events-config \'{"publisher":"zmq"}\'',
    },
    "saga": {},
    "openai": {
        CAPACITY: "set engines.kv_capacity_tokens",
        BATCH: "set engines.max_num_seqs",
    },
}


def findings(seen: Seen) -> tuple[Finding, ...]:
    info, kind = seen.info, seen.info.kind
    made = [
        finding(kind, MODELS, bool(info.models) or None, listed(info.models)),
        finding(kind, CAPACITY, info.kv_capacity_tokens is not None, _tokens(seen)),
        finding(kind, BATCH, info.max_num_seqs is not None, _requests(info.max_num_seqs)),
        finding(kind, PREFIXES, *_prefixes(seen)),
        *_answers(seen),
        finding(kind, METRICS, *_metrics(seen.missing_metrics)),
        *_events(seen),
        *_plugin(seen),
        finding(kind, HOSTED, info.host_kv_tokens is not None, _count(info.host_kv_tokens)),
        finding(kind, SHARED, info.shared_tier is not None, info.shared_tier or ""),
        finding(kind, PRIORITIES, None),
    ]
    return tuple(made)


def finding(
    kind: EngineKind, topic: _Topic, has: bool | None, found: str = "", fix: str | None = None
) -> Finding:
    return Finding(
        what=topic.what,
        answer=ANSWERS[has],
        found=found,
        means=topic.has if has else topic.lacks,
        fix=None if has is not False else fix or FIXES[kind].get(topic),
    )


def listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _tokens(seen: Seen) -> str:
    tokens, size = seen.info.kv_capacity_tokens, seen.block_size
    return _count(tokens) + (f" in blocks of {size}" if tokens is not None and size else "")


def _count(tokens: int | None) -> str:
    return "" if tokens is None else f"{tokens:,} tokens"


def _requests(number: int | None) -> str:
    return "" if number is None else f"{number:,} requests"


def _prefixes(seen: Seen) -> tuple[bool | None, str]:
    """What the engine says of it, or what was seen to happen."""
    trial = seen.trial
    cached = trial.streamed.cached_tokens if trial is not None and trial.streamed else None
    if cached:
        return True, f"the same prompt again: {cached:,} tokens cached"
    return seen.prefix_caching, ""


def _answers(seen: Seen) -> list[Finding]:
    kind, trial = seen.info.kind, seen.trial
    if trial is None:
        topics = (ANSWERING, CACHED, STREAMED)
        return [finding(kind, topic, None, seen.untried) for topic in topics]
    streamed = trial.streamed
    tells = streamed is not None and streamed.prompt_tokens is not None
    return [
        finding(kind, ANSWERING, True, trial.api),
        finding(kind, CACHED, trial.whole.cached_tokens is not None),
        finding(kind, STREAMED, tells, "" if streamed else "streams are refused"),
    ]


def _metrics(missing: Sequence[str] | None) -> tuple[bool, str]:
    if missing is None:
        return False, "there is no /metrics"
    return not missing, f"missing: {', '.join(missing)}" if missing else ""


def _events(seen: Seen) -> list[Finding]:
    info, kind, trial = seen.info, seen.info.kind, seen.trial
    places = listed(info.kv_event_endpoints)
    if not places:
        far = FAR_EVENTS in info.notes
        found = "published, but on no TCP port of its own host" if far else ""
        fix = "publish them on a TCP port, as in tcp://*:5557" if far else None
        return [finding(kind, EVENTS, False, found, fix)]
    if trial is None:
        return [finding(kind, topic, None, seen.untried) for topic in (EVENTS, NAMES)]
    if not trial.num_events and seen.prefix_caching is False:
        fix = FIXES[kind].get(PREFIXES)
        return [finding(kind, EVENTS, False, "there are none without a prefix cache", fix)]
    if not trial.num_events:
        fix = f"let SAGA's machine connect to {places}"
        return [finding(kind, EVENTS, False, f"published at {places}, but none arrives", fix)]
    return [
        finding(kind, EVENTS, True, f"they arrive from {places}"),
        finding(kind, NAMES, trial.is_named),
    ]


def _plugin(seen: Seen) -> list[Finding]:
    info, kind, trial = seen.info, seen.info.kind, seen.trial
    if CONTROL not in info.capabilities:
        found = "its routes are there, but not its scheduler" if seen.idle_plugin else ""
        hints = finding(kind, HINTED, False, "they come with the plugin")
        return [finding(kind, PLUGIN, False, found), hints]
    is_known = trial.is_known if trial is not None else None
    return [
        finding(kind, PLUGIN, True, _figures(seen.figures or {})),
        finding(kind, HINTED, is_known, seen.untried),
    ]


def _figures(figures: Mapping[str, Any]) -> str:
    numbers = {
        name: value
        for name, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return ", ".join(f"{name} {value:,}" for name, value in list(numbers.items())[:MAX_FIGURES])
