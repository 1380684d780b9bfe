"""The gateway put together: what the routes work with, and what goes on beside requests."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote, unquote

from saga import wire
from saga.clock import Clock, MonotonicClock
from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.gateway.asks import EngineAsks
from saga.gateway.body import members, splice, without
from saga.gateway.discovery import AllSources, DnsSource, FileSource, Source, StaticSource
from saga.gateway.fairness import FairnessView
from saga.gateway.fleet import Fleet, FleetLimits, LiveEngine
from saga.gateway.foresight import Foresight
from saga.gateway.heads import HOP_BY_HOP, end_to_end, header_lines
from saga.gateway.host import Host, Observe
from saga.gateway.identity import Identifier
from saga.gateway.journal import Journal
from saga.gateway.kv_events import KvEvents
from saga.gateway.limits import Limits
from saga.gateway.live import LiveView
from saga.gateway.metrics import Metrics
from saga.gateway.prefetch import Prefetches
from saga.gateway.probe import CONTROL, HINTS
from saga.gateway.relay import Call
from saga.gateway.reload import Loaded
from saga.gateway.residency import tell
from saga.gateway.scrape import LoadSample
from saga.gateway.sessions import LiveSession, Sessions
from saga.gateway.settings import Settings, TenantSettings
from saga.gateway.starts import PrefillQueue
from saga.gateway.upstream import Timeouts, Upstream

logger = logging.getLogger(__name__)

DEFAULT_KV_TOKENS = 200_000
"""For engines that do not tell theirs."""
LOOK_S = 1.0
"""Between looks at who stays away, and at whether a sample is due."""
USUAL_TENANT = TenantSettings()
"""One of which the settings say nothing."""
NOT_PASSED = HOP_BY_HOP | {wire.ENGINE_SESSION_HEADER}
"""Headers of clients that no engine gets: to an engine, two tenants' equal names of sessions would
be one session. ..."""
NOR_KEYS = NOT_PASSED | {"authorization", "x-api-key"}
"""... where the key in them is for us."""
MAX_REMEMBERED = 4096
"""Characters of a client's headers; for longer ones the lines are made anew each time."""
SAFE = " !#$&'()*+,-./:;<=>?@[]^_`{|}~"
"""What a header's value may contain as it is."""
_SESSION = wire.SESSION_HEADER.encode()
_SOURCE = wire.SOURCE_HEADER.encode()
_ENGINE = wire.ENGINE_HEADER.encode()
_DECISION = wire.DECISION_HEADER.encode()


class Gateway:
    """Everything that is alive between ``start`` and ``stop``. One event loop, one scheduler."""

    def __init__(
        self, loaded: Loaded, *, clock: Clock | None = None, observe: Observe | None = None
    ) -> None:
        self.settings: Settings = loaded.settings
        self.keys = loaded.keys
        self.clock = clock or MonotonicClock()
        self.upstream: Upstream
        self.fleet: Fleet
        self.asks = EngineAsks(self)
        self.prefetches = Prefetches(self, self.settings.sessions.prefetch_mib << 20)
        self.journal = Journal()
        self._observe = observe
        self.host = Host(
            load_preset(self.settings.preset).policies, self.clock, self.asks, observe=self._note
        )
        self.foresight = Foresight()
        sessions = self.settings.sessions
        self.sessions = Sessions(
            self.host,
            idle_us=int(sessions.idle_s * 1e6),
            max_sessions=sessions.max_sessions,
            closed=self._session_closed,
        )
        self.identifier = self._identifier()
        self.limits = Limits(self.settings.tenants, self.host.now)
        self.retry_budget = RetryBudget(self.settings.retries.budget_fraction)
        self.responses = ResponseHomes(sessions.max_sessions)
        self.metrics = Metrics(self)
        self.live = LiveView(
            self.host.scheduler.state,
            self.sessions.sessions,
            completed=self.metrics.task.observe,
        )
        self.fairness = FairnessView(self.host.scheduler, served=self.metrics.served)
        self.timeouts = Timeouts(**self.settings.timeouts.model_dump())
        self.draining = False
        self.kv_events = KvEvents(unquote, partial(tell, self.host), self.clock)
        self._prefills: dict[str, PrefillQueue] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- life

    async def start(self) -> None:
        self.upstream = Upstream()
        engines = self.settings.engines
        self.fleet = Fleet(
            self.upstream,
            self,
            clock=self.clock,
            rng=random.Random(),
            api_key=engines.api_key.get_secret_value() if engines.api_key else None,
            kv_events=self.kv_events,
            limits=FleetLimits(scrape_s=engines.scrape_s),
        )
        await self.fleet.start()
        sources: list[Source] = [StaticSource(engines.urls)]
        if engines.file is not None:
            sources.append(FileSource(engines.file, on_error=logger.warning))
        if engines.dns is not None:
            sources.append(DnsSource(engines.dns, on_error=logger.warning))
        self.spawn(self.fleet.follow(AllSources(sources)))
        self.spawn(self._look_around())

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.fleet.stop()
        self.host.close()
        await self.upstream.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs it in the background until it ends or the gateway stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _look_around(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.sessions.reap()
            self.fairness.take(self.host.now)

    def apply(self, loaded: Loaded) -> None:
        """Takes over new settings and keys; what is under way goes on."""
        self.settings, self.keys = loaded.settings, loaded.keys
        self.timeouts = Timeouts(**self.settings.timeouts.model_dump())
        self.limits.configure(self.settings.tenants, self.host.now)
        mapping = self.settings.identity.mapping
        self.identifier.configure(
            extra_headers=self.settings.identity.extra_headers,
            mapping={str(what): source for what, source in mapping.items()},
        )

    def _identifier(self) -> Identifier:
        identity = self.settings.identity
        return Identifier(
            extra_headers=identity.extra_headers,
            mapping={str(what): source for what, source in identity.mapping.items()},
            max_sessions=self.settings.sessions.max_sessions,
        )

    def _note(self, event: ev.Event, actions: list[act.Action]) -> None:
        if actions:
            self.journal.note(event, actions, self.host.scheduler)
        self.live.note(event, actions)
        self.fairness.note(event)
        if self._observe is not None:
            self._observe(event, actions)

    def _session_closed(self, session: str) -> None:
        self.prefetches.closed(session)
        self.foresight.closed(session)

    # ---- small facts

    def tenant(self, name: str) -> TenantSettings:
        return self.settings.tenants.get(name) or USUAL_TENANT

    def next_request_id(self) -> str:
        return f"r{next(self._numbers)}"

    def prefills(self, engine: str) -> PrefillQueue:
        return self._prefills.setdefault(engine, PrefillQueue())

    def retry_after_s(self) -> int:
        """About when a place is free: all that wait, by the pace of the last ones that ended."""
        ended = sum(self.host.scheduler.state.num_ended.values())
        per_s = ended / max(1.0, self.host.now / 1e6)
        return min(60, max(1, int(self.host.num_held / per_s))) if per_s else 5

    # ---- what engines are told

    def headers_to(self, call: Call, session: LiveSession) -> bytes:
        """The lines of the client's headers, with the session's id."""
        told = tuple([item for item in call.headers.items() if item[0] != "content-length"])
        dropped, key = self._dropped()
        is_short = sum(map(len, call.headers.values())) <= MAX_REMEMBERED
        lines = _lines_to if is_short else _lines_to.__wrapped__
        return lines(told, dropped, key, session.id)

    def proxy_headers(self, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        """What is passed of a client's headers."""
        return _headers_to(headers, *self._dropped())

    def _dropped(self) -> tuple[frozenset[str], str | None]:
        """Which headers are not passed on, and the engines' key."""
        secret = self.settings.engines.api_key
        key = None if secret is None else secret.get_secret_value()
        return NOT_PASSED if self.keys is None and key is None else NOR_KEYS, key

    def body_to(self, engine: LiveEngine, call: Call, session: LiveSession) -> bytes:
        """The client's body; our own field taken out, hints put in where the engine reads them."""
        body, fields, info = call.body, call.fields, engine.info
        if fields.saga:
            body = without(body, wire.CONTEXT_FIELD)
        if fields.session_id:
            body = without(body, wire.SESSION_FIELD)
        if info is not None and HINTS in info.capabilities:
            given = members(fields.vllm_xargs)
            for name in wire.HINTS:  # nobody pins KV but the scheduler
                given.pop(name, None)
            if fields.vllm_xargs:
                body = without(body, wire.HINTS_FIELD)
            body = splice(body, {wire.HINTS_FIELD: {**given, **self._hints(session)}})
        elif info is not None and info.kind == "sglang":
            body = splice(body, {wire.SESSION_FIELD: session_value(session.id)})
        return body

    def _hints(self, session: LiveSession) -> dict[str, Any]:
        hints: dict[str, Any] = {wire.HINT_SESSION: session.id}
        if session.ends:
            hints |= {wire.HINT_FINAL: 1, wire.HINT_TTL: 0}
            return hints
        times, owner = self.host.scheduler.view.return_times, session.workflow.tenant
        usual = times.quantile(session.tool, 0.5, owner=owner)
        if usual is not None:
            hints[wire.HINT_RETURN] = round(usual / 1e6, 3)
        return hints

    def headers_back(
        self, call: Call, engine: str | None, decision: str
    ) -> list[tuple[bytes, bytes]]:
        if not self.settings.identity.response_headers:
            return []
        told = [
            (_SESSION, call.identity.session),
            (_SOURCE, call.identity.source),
        ]
        if engine is not None:
            told += [(_ENGINE, engine), (_DECISION, decision)]
        return [(name, _header_value(value)) for name, value in told]

    # ---- what engines tell (FleetListener)

    def engine_up(self, engine: LiveEngine) -> None:
        info, settings = engine.info, self.settings.engines
        told = info.kv_capacity_tokens if info is not None else None
        batch = info.max_num_seqs if info is not None else None
        retains = info is not None and CONTROL in info.capabilities
        self.host.tell(
            ev.EngineUp(
                at=self.host.now,
                engine=engine.name,
                kv_capacity_tokens=settings.kv_capacity_tokens or told or DEFAULT_KV_TOKENS,
                max_num_seqs=batch or settings.max_num_seqs,
                retains=retains,
                prefetches=self.prefetches.possible_at(engine),
                shared_kv=None if info is None else info.shared_tier,
            )
        )

    def engine_down(self, name: str) -> None:
        self._prefills.pop(name, None)
        if name in self.host.scheduler.state.engines:
            self.host.engine_down(name)

    def engine_draining(self, name: str) -> None:
        if name in self.host.scheduler.state.engines:
            self.host.tell(ev.EngineDraining(at=self.host.now, engine=name))

    def engine_report(self, name: str, sample: LoadSample) -> None:
        self.prefills(name).note_report(sample.waiting or 0, sample.kv_used)
        if sample.kv_used is not None and name in self.host.scheduler.state.engines:
            now = self.host.now
            self.host.tell(
                ev.EngineReport(
                    at=now,
                    engine=name,
                    kv_used_fraction=sample.kv_used,
                    age_us=max(0, now - sample.at_us),
                )
            )


@lru_cache(maxsize=4096)
def _lines_to(
    headers: tuple[tuple[str, str], ...], dropped: frozenset[str], key: str | None, session: str
) -> bytes:
    """Remembered, as an agent says the same with every step."""
    kept = _headers_to(dict(headers), dropped, key)
    return header_lines([*kept, (wire.ENGINE_SESSION_HEADER, session_value(session))])


def _headers_to(
    headers: Mapping[str, str], dropped: frozenset[str], key: str | None
) -> list[tuple[str, str]]:
    kept = end_to_end(headers, dropped)
    if key is not None:
        kept.append(("authorization", f"Bearer {key}"))
    return kept


@lru_cache(maxsize=4096)
def _header_value(text: str) -> bytes:
    return quote(text, safe=SAFE).encode()


@lru_cache(maxsize=4096)
def session_value(session: str) -> str:
    """A session's id as engines are told it."""
    return quote(session, safe="/:#._-")


class RetryBudget:
    """Retries as a share of requests, so that a sick fleet is not asked twice as much."""

    def __init__(self, fraction: float, *, most: float = 10.0) -> None:
        self._fraction = fraction
        self._most = most
        self._saved = most

    def earn(self) -> None:
        """A request came."""
        self._saved = min(self._most, self._saved + self._fraction)

    def take(self) -> bool:
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class ResponseHomes:
    """Which engine holds a stored response, by tenant; the oldest are forgotten."""

    def __init__(self, most: int) -> None:
        self._engines: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._most = most

    def put(self, tenant: str, response: str, engine: str) -> None:
        self._engines[tenant, response] = engine
        if len(self._engines) > self._most:
            self._engines.popitem(last=False)

    def engine_of(self, tenant: str, response: object) -> str | None:
        return self._engines.get((tenant, response)) if isinstance(response, str) else None
