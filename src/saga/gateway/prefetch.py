"""KV brought back before it is asked for: a session's last request, sent again for one token.

For that the gateway has to remember what sessions last asked. It does so only if it is given room
(``sessions.prefetch_mib``), in memory, and until the session is over; headers, and the keys in
them, are not remembered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from saga import wire
from saga.core.return_times import owner_of
from saga.gateway.body import BodyError, members, splice, top_level
from saga.gateway.probe import HOST_TIER
from saga.gateway.upstream import Timeouts, UpstreamError

if TYPE_CHECKING:
    from saga.gateway.fleet import LiveEngine
    from saga.gateway.relay import Call
    from saga.gateway.service import Gateway
    from saga.gateway.sessions import LiveSession

TIMEOUTS: Final = Timeouts(connect_s=2.0, first_byte_s=30.0, chunk_s=10.0, total_s=30.0)
MAX_UNDER_WAY: Final = 64
MAX_ANSWER_BYTES: Final = 1 << 20
SHORTEST_TTL_S: Final = 5.0
"""For how long KV that was brought back stays at least."""

ENTRY_BYTES: Final = 1_024
"""What an entry takes beside the body, generously."""

LIMITS: Final = {"responses": "max_output_tokens"}
"""How the APIs call the number of tokens of an answer, where it is not ``max_tokens``."""
OMITTED: Final = frozenset(
    {
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"),
        *("stream", "stream_options", "n", "best_of", "use_beam_search", "background", "store"),
        *("logprobs", "top_logprobs", "prompt_logprobs", "echo", "priority"),
        *(wire.CONTEXT_FIELD, wire.SESSION_FIELD, wire.HINTS_FIELD),
    }
)
"""What is about the answer, which nobody reads, or would keep the KV from being read."""


class Asked(NamedTuple):
    """What a session last asked."""

    api: str
    path: str
    body: bytes


class LastRequests:
    """What sessions last asked, in so many bytes; those that asked longest ago are forgotten."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._asked: OrderedDict[str, Asked] = OrderedDict()

    def __len__(self) -> int:
        return len(self._asked)

    def put(self, session: str, asked: Asked) -> None:
        self.drop(session)
        self._asked[session] = asked
        self.num_bytes += _size(asked)
        while self.num_bytes > self._max_bytes:
            self.drop(next(iter(self._asked)))

    def get(self, session: str) -> Asked | None:
        return self._asked.get(session)

    def drop(self, session: str) -> None:
        asked = self._asked.pop(session, None)
        if asked is not None:
            self.num_bytes -= _size(asked)


def _size(asked: Asked) -> int:
    return len(asked.body) + ENTRY_BYTES


class Prefetches:
    """What is remembered of sessions, and the requests under way that bring KV back."""

    def __init__(self, gateway: Gateway, max_bytes: int) -> None:
        self.num_failed = 0
        self.last = LastRequests(max_bytes)
        self._gateway = gateway
        self._on = max_bytes > 0
        self._under_way: dict[str, asyncio.Task[None]] = {}

    @property
    def num_under_way(self) -> int:
        return len(self._under_way)

    def possible_at(self, engine: LiveEngine) -> bool:
        """Whether it has anything to bring KV back from."""
        return self._on and engine.info is not None and HOST_TIER in engine.info.capabilities

    # ---- what sessions do

    def answered(self, session: LiveSession, call: Call) -> None:
        """An engine has answered a request; only of a session that goes on it is remembered."""
        if not self._on or session.ends:
            return
        if self._gateway.sessions.sessions.get(session.id) is session:
            path = call.path.partition("?")[0]
            self.last.put(session.id, Asked(call.api, path, call.body))

    def arrived(self, session: str) -> None:
        """Its next request is here: nothing is to be prepared any more."""
        task = self._under_way.pop(session, None)
        if task is not None:
            task.cancel()

    def closed(self, session: str) -> None:
        """It is over: nothing of it is kept."""
        self.arrived(session)
        self.last.drop(session)

    # ---- what the scheduler wants

    def begin(self, name: str, session: str) -> bool:
        """False if the engine cannot or nothing is known of the session."""
        engine, asked = self._gateway.fleet.engines.get(name), self.last.get(session)
        if engine is None or asked is None or not self.possible_at(engine):
            return False
        if session not in self._under_way and len(self._under_way) < MAX_UNDER_WAY:
            task = self._gateway.spawn(self._send(engine.url, session, asked))
            self._under_way[session] = task
            task.add_done_callback(lambda task: self._forget(session, task))
        return True

    async def _send(self, url: str, session: str, asked: Asked) -> None:
        gateway = self._gateway
        key = gateway.settings.engines.api_key
        try:
            status, _ = await gateway.upstream.fetch(
                url,
                "POST",
                asked.path,
                api_key=key.get_secret_value() if key else None,
                body=shortened(asked, self._hints(session)),
                timeouts=TIMEOUTS,
                limit=MAX_ANSWER_BYTES,
            )
            self.num_failed += status >= 400
        except (UpstreamError, BodyError):
            self.num_failed += 1

    def _hints(self, session: str) -> dict[str, Any]:
        """The KV should stay until nearly all sessions are back from such a tool."""
        scheduler = self._gateway.host.scheduler
        known = scheduler.state.sessions[session]
        owner = owner_of(known.workflow.agent_type)
        usual = scheduler.view.return_times.quantile(known.tool, 0.95, owner=owner) or 0
        left_s = (known.acting_since + usual - self._gateway.host.now) / 1e6
        return {
            wire.HINT_SESSION: session,
            wire.HINT_PREFETCH: 1,
            wire.HINT_TTL: round(max(left_s, SHORTEST_TTL_S), 3),
            wire.HINT_RETURN: 0,
        }

    def _forget(self, session: str, task: asyncio.Task[None]) -> None:
        if self._under_way.get(session) is task:
            del self._under_way[session]


def shortened(asked: Asked, hints: dict[str, Any]) -> bytes:
    """The same prompt, for one token. Raises BodyError."""
    fields = top_level(asked.body)
    given = members(fields.get(wire.HINTS_FIELD, Raw()))
    kept = {name: value for name, value in fields.items() if name not in OMITTED}
    ours: dict[str, Any] = {LIMITS.get(asked.api, "max_tokens"): 1, "stream": False}
    if asked.api == "responses":
        ours["store"] = False
    ours[wire.HINTS_FIELD] = {
        **{name: value for name, value in given.items() if name not in wire.HINTS},
        **hints,
    }
    return splice(msgspec.json.encode(kept), ours)
