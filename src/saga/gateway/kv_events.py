"""Follows what engines publish of their KV, over ZeroMQ (SUB, on TCP)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import zmq
import zmq.asyncio

from saga.clock import Clock
from saga.gateway.kv_feed import KvFeed, KvNews, SessionOf

logger = logging.getLogger(__name__)

Tell = Callable[[str, KvNews], None]
"""Is told which engine has news, and what."""

PACE_S: Final = 0.02
"""Between two looks at a publisher: what happens in between is told at once, as it has become."""
WORK_PER_LOOK: Final = 1_000
"""Blocks; some 3 ms. What comes faster for long is lost on the way, which shows as a gap."""
MAX_MESSAGE: Final = 4 * 1024 * 1024
"""Bytes; vLLM's largest steps have some 500 KB. ZeroMQ hangs up on what sends more."""
MAX_WAITING: Final = 1_000
"""Messages that ZeroMQ holds for us."""
SILENCE_S: Final = 30.0
"""After which a connection is made anew: ZeroMQ gives some up for good, and does not say so."""

_ENDPOINT: Final = re.compile(r"tcp://(.+):([0-9]{1,5})")
_ADDRESS: Final = re.compile(r"\*|[0-9.]+|\[[0-9a-fA-F:]+\]|::|0::0")


def reachable(endpoint: str, engine_url: str) -> str | None:
    """Where to connect to for an endpoint that an engine tells; None if it is not to be used.

    It is always a port of the engine's own host: addresses are what that host calls itself, and an
    engine cannot send us elsewhere.
    """
    found = _ENDPOINT.fullmatch(endpoint)
    host = urlsplit(engine_url).hostname
    if found is None or host is None or not 0 < int(found[2]) < 65_536:
        return None
    if found[1].lower() != host and not _ADDRESS.fullmatch(found[1]):
        return None
    return f"tcp://[{host}]:{found[2]}" if ":" in host else f"tcp://{host}:{found[2]}"


@dataclass(slots=True, eq=False)
class _Followed:
    feeds: Sequence[KvFeed]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    heard_us: int | None = None


class KvEvents:
    """Follows each engine from ``follow`` to ``leave``, all of its publishers (one for each of
    vLLM's data-parallel ranks). Connections that break are made again by themselves.

    A session counts as where it was served last, among an engine's publishers; what one of them
    says of all its blocks counts for the engine. All calls are from the event loop's thread.
    """

    def __init__(
        self, session_of: SessionOf, tell: Tell, clock: Clock, *, silence_s: float = SILENCE_S
    ) -> None:
        self._session_of = session_of
        self._tell = tell
        self._clock = clock
        self._silence_ms = int(silence_s * 1_000)
        self._context: zmq.asyncio.Context | None = None
        """Has threads of its own, so it is made when there is something to follow."""
        self._engines: dict[str, _Followed] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def follow(self, engine: str, endpoints: Sequence[str]) -> None:
        """Begins anew, knowing nothing, where the engine was followed before."""
        self.leave(engine)
        if not endpoints:
            return
        feeds = [KvFeed(self._session_of) for _ in endpoints]
        followed = self._engines[engine] = _Followed(feeds)
        for endpoint, feed in zip(endpoints, feeds, strict=True):
            work = self._listen(engine, followed, feed, endpoint)
            followed.tasks.append(asyncio.create_task(work, name=f"KV events of {engine}"))

    def leave(self, engine: str) -> None:
        """Does nothing if it is not followed."""
        followed = self._engines.pop(engine, None)
        for task in followed.tasks if followed is not None else ():
            task.cancel()
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def stop(self) -> None:
        for engine in list(self._engines):
            self.leave(engine)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    # ---- what is told about it

    def counts(self, engine: str) -> Counter[str]:
        """What was heard since it is followed, by kind: ``stored`` and ``removed`` blocks, events
        of other kinds, ``messages``, ``malformed`` ones, ``gaps``, ``restarts`` and blocks
        ``forgotten`` for want of room. Empty if it is not followed."""
        followed, counts = self._engines.get(engine), Counter[str]()
        for feed in followed.feeds if followed is not None else ():
            counts += feed.counts
            counts["messages"] += feed.num_messages
            counts["malformed"] += feed.num_malformed
            counts["gaps"] += feed.num_gaps
            counts["restarts"] += feed.num_restarts
            counts["forgotten"] += feed.blocks.num_forgotten
        return counts

    def told(self, engine: str) -> dict[str, Any] | None:
        """For operators; None if the engine is not followed."""
        followed = self._engines.get(engine)
        if followed is None:
            return None
        heard = followed.heard_us
        age_us = None if heard is None else max(0, self._clock.now_us() - heard)
        return {
            "flowing": heard is not None,
            "age_s": None if age_us is None else round(age_us / 1e6, 3),
            "blocks": sum(len(feed.blocks) for feed in followed.feeds),
            "counts": dict(self.counts(engine)),
        }

    # ---- one publisher

    async def _listen(self, engine: str, followed: _Followed, feed: KvFeed, endpoint: str) -> None:
        spent = 0
        while True:
            with self._socket(endpoint) as socket:
                while await socket.poll(self._silence_ms):
                    for work in feed.take(await socket.recv_multipart()):
                        spent += work
                        if spent >= WORK_PER_LOOK:
                            spent = await self._rest(engine, followed, feed)
                    if not await socket.poll(0):
                        spent = await self._rest(engine, followed, feed)

    async def _rest(self, engine: str, followed: _Followed, feed: KvFeed) -> int:
        """Passes on what is new, and gives others time; the work done since then: none."""
        followed.heard_us = self._clock.now_us()
        self._pass_on(engine, followed, feed)
        await asyncio.sleep(PACE_S)
        return 0

    def _socket(self, endpoint: str) -> zmq.asyncio.Socket:
        if self._context is None:
            self._context = zmq.asyncio.Context()
        socket = self._context.socket(zmq.SUB)
        socket.linger = 0
        socket.rcvhwm = MAX_WAITING
        socket.maxmsgsize = MAX_MESSAGE
        socket.ipv6 = "[" in endpoint
        socket.reconnect_ivl, socket.reconnect_ivl_max = 100, 5_000
        socket.heartbeat_ivl, socket.heartbeat_timeout = 5_000, 15_000
        socket.subscribe(b"")
        socket.connect(endpoint)
        return socket

    def _pass_on(self, engine: str, followed: _Followed, feed: KvFeed) -> None:
        news = feed.news()
        if news is None:
            return
        for other in followed.feeds:
            if other is not feed:
                for held in news.held:
                    if not held.lost:
                        other.blocks.leave(held.session)
        try:
            self._tell(engine, news)
        except Exception:  # a listener's fault must not end the following
            logger.exception("engine %s: news of its KV failed", engine)
