"""The engines as they are now: which exist, which live, which may be sent to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random
from typing import Literal, Protocol
from urllib.parse import urlsplit

from saga.clock import Clock
from saga.gateway.breaker import Breaker, BreakerLimits, is_failure
from saga.gateway.discovery import Source, engine_url
from saga.gateway.kv_events import KvEvents
from saga.gateway.probe import PROBE_TIMEOUTS, EngineInfo, probe
from saga.gateway.scrape import LoadSample, scrape
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLimits:
    scrape_s: float = 2.0
    jitter: float = 0.2
    """Each pause is longer or shorter by up to this share, so that scrapes spread out."""
    down_after: int = 3
    """Failed checks in a row, with no sign of life between them."""
    timeouts: Timeouts = PROBE_TIMEOUTS
    breaker: BreakerLimits = field(default_factory=BreakerLimits)


@dataclass(slots=True, eq=False)
class LiveEngine:
    name: str
    url: str
    breaker: Breaker
    state: Literal["probing", "up", "draining", "down"] = "probing"
    info: EngineInfo | None = None
    """Set once it was up."""
    sample: LoadSample | None = None
    failures: int = 0
    """Checks that failed since the last sign of life."""
    error: str | None = None
    """Why the last check failed, if it did."""
    told: Literal["up", "draining"] | None = None
    """What the listener knows; None: of no such engine."""


class FleetListener(Protocol):
    """For each engine: up first, then draining and up in turn, then down; reports between."""

    def engine_up(self, engine: LiveEngine) -> None:
        """It joined (``info`` is set), or may be sent to again after draining."""
        ...

    def engine_down(self, name: str) -> None: ...

    def engine_draining(self, name: str) -> None:
        """Nothing new to it: it was asked to drain, or its breaker opened."""
        ...

    def engine_report(self, name: str, sample: LoadSample) -> None: ...


class Fleet:
    """Owns the engines, looks after each, and tells the listener what changes.

    The data path says how its requests fare with ``note_sent``, ``note_success`` and
    ``note_failure``. A breaker never takes out the last engine: if all of them would refuse, none
    does. ``kv_events`` follows each engine from its probe until it is gone. All methods are to be
    called from the event loop's thread.
    """

    def __init__(
        self,
        upstream: Upstream,
        listener: FleetListener,
        *,
        clock: Clock,
        rng: Random,
        api_key: str | None = None,
        kv_events: KvEvents | None = None,
        limits: FleetLimits = FleetLimits(),
    ) -> None:
        self.engines: dict[str, LiveEngine] = {}
        self.limits = limits
        self._upstream = upstream
        self._listener = listener
        self._clock = clock
        self._rng = rng
        self._api_key = api_key
        self._kv_events = kv_events
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False
        self._listed: frozenset[str] = frozenset()

    async def start(self) -> None:
        """Looks after every engine from now on, and after those still to come."""
        self._started = True
        for live in self.engines.values():
            self._look_after(live)

    async def stop(self) -> None:
        """Looks no more; tells nobody."""
        self._started = False
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._kv_events is not None:
            await self._kv_events.stop()

    # ---- which engines there are

    def add(self, url: str) -> str:
        """Its name. A known engine keeps its own and ends its draining. Raises DiscoveryError."""
        url = engine_url(url)
        for live in self.engines.values():
            if live.url == url:
                if live.state == "draining":
                    live.state = "up"
                    self._tell()
                return live.name
        live = LiveEngine(self._new_name(url), url, Breaker(self.limits.breaker))
        self.engines[live.name] = live
        if self._started:
            self._look_after(live)
        return live.name

    def drain(self, name: str) -> None:
        """Nothing new to it. It is forgotten once it stops answering, or at once if it is not up.

        Raises KeyError.
        """
        live = self.engines[name]
        if live.told is None:
            self.remove(name)
        else:
            live.state = "draining"
            self._tell()

    def remove(self, name: str) -> None:
        """Forgets it with all that it runs. Raises KeyError."""
        live = self.engines.pop(name)
        self._leave_events(live)
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()
        self._tell()  # before what it held is placed again: others may come in for it
        if live.told is not None:
            live.told = None
            self._listener.engine_down(name)

    def sync(self, urls: Collection[str]) -> None:
        """Follows a list: what is new there is added, what has gone from there is drained."""
        now = frozenset(engine_url(url) for url in urls)
        for url in sorted(now - self._listed):
            self.add(url)
        gone = self._listed - now
        for name in [live.name for live in self.engines.values() if live.url in gone]:
            self.drain(name)
        self._listed = now

    async def follow(self, source: Source) -> None:
        """Follows a source until it ends or the task is cancelled."""
        async for urls in source.watch():
            self.sync(urls)

    # ---- what the data path asks and tells; unknown names are engines that have just gone

    def usable(self, name: str) -> bool:
        """Whether a request may be sent to it now."""
        live = self.engines.get(name)
        return live is not None and live.state == "up" and self._passes(live)

    def note_sent(self, name: str) -> None:
        live = self.engines.get(name)
        if live is not None and not live.breaker.closed:
            live.breaker.sent(self._clock.now_us())
            self._tell()

    def note_success(self, name: str) -> None:
        """It answered, or goes on answering."""
        live = self.engines.get(name)
        if live is not None:
            live.failures = 0
            was_closed = live.breaker.closed
            live.breaker.succeeded(self._clock.now_us())
            if not was_closed:
                self._tell()

    def note_failure(self, name: str, failure: UpstreamError | int) -> None:
        """An error, or the status of an answer that was no success.

        A total timeout is not the engine's fault: it was answering all the time.
        """
        live = self.engines.get(name)
        if live is None:
            return
        if isinstance(failure, int):
            live.failures = 0  # whoever answers lives
            counts = is_failure(failure)
        else:
            counts = failure.kind != "total"
        if counts:
            live.breaker.failed(self._clock.now_us())
            self._tell()

    # ---- health

    async def check(self, name: str) -> None:
        """One look at an engine. Raises KeyError."""
        await self._check(self.engines[name])

    def _look_after(self, live: LiveEngine) -> None:
        task = asyncio.create_task(self._watch(live), name=f"engine {live.name}")
        self._tasks[live.name] = task

    async def _watch(self, live: LiveEngine) -> None:
        while True:
            try:
                await self._check(live)
            except Exception:  # a listener's fault must not end the watch
                logger.exception("engine %s: check failed", live.name)
            spread = self.limits.jitter * self._rng.uniform(-1.0, 1.0)
            await asyncio.sleep(self.limits.scrape_s * (1.0 + spread))

    async def _check(self, live: LiveEngine) -> None:
        try:
            if live.told is None:
                await self._probe(live)
            else:
                await self._scrape(live)
        except UpstreamError as error:
            if self._known(live):
                self._failed(live, error)
        self._tell()  # time alone opens and closes things, too

    async def _probe(self, live: LiveEngine) -> None:
        info = await probe(self._upstream, live.url, self._api_key, timeouts=self.limits.timeouts)
        if self._known(live):
            live.info = info
            live.state = "up"
            live.breaker = Breaker(self.limits.breaker)
            self._lives(live)
            if self._kv_events is not None:
                self._kv_events.follow(live.name, info.kv_event_endpoints)
            logger.info("engine %s is up: %s", live.name, " ".join((info.kind, *info.notes)))

    async def _scrape(self, live: LiveEngine) -> None:
        sample = await scrape(
            self._upstream, live.url, self._api_key, self._clock, timeouts=self.limits.timeouts
        )
        if self._known(live):
            self._lives(live)
            if sample is not None:
                live.sample = sample
                self._listener.engine_report(live.name, sample)

    def _lives(self, live: LiveEngine) -> None:
        live.failures = 0
        live.error = None

    def _failed(self, live: LiveEngine, error: UpstreamError) -> None:
        live.failures += 1
        live.error = f"{error.kind}: {error}"
        if live.failures < self.limits.down_after or live.told is None:
            return
        logger.warning("engine %s is down: %s", live.name, live.error)
        if live.state == "draining":
            self.remove(live.name)
        else:
            live.state = "down"
            live.sample = None
            self._leave_events(live)

    def _leave_events(self, live: LiveEngine) -> None:
        if self._kv_events is not None:
            self._kv_events.leave(live.name)

    def _known(self, live: LiveEngine) -> bool:
        """Whether it was not removed while we waited for it."""
        return self.engines.get(live.name) is live

    # ---- what is said of them

    def _passes(self, live: LiveEngine) -> bool:
        """Whether breakers let requests through to an engine that is up."""
        now = self._clock.now_us()
        return live.breaker.allows(now) or not any(
            other.breaker.allows(now) for other in self.engines.values() if other.state == "up"
        )

    def _wanted(self, live: LiveEngine) -> Literal["up", "draining"] | None:
        match live.state:
            case "up":
                return "up" if self._passes(live) else "draining"
            case "draining":
                return "draining"
            case "probing" | "down":
                return None

    def _tell(self) -> None:
        """Tells the listener what it does not know yet: room first, so that work finds a place."""
        for news in ("up", "draining", None):
            for live in list(self.engines.values()):
                if live.told == news or self._wanted(live) != news:
                    continue
                live.told = news
                match news:
                    case "up":
                        self._listener.engine_up(live)
                    case "draining":
                        self._listener.engine_draining(live.name)
                    case None:
                        self._listener.engine_down(live.name)

    def _new_name(self, url: str) -> str:
        place = urlsplit(url).netloc
        name, number = place, 1
        while name in self.engines:
            number += 1
            name = f"{place}-{number}"
        return name
