"""The live host: coroutines become events, actions become tasks.

One synchronous ``handle`` on one event loop; no locks. What a request waits for is a future; what
an action asks of an engine goes to ``EngineControl``.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from saga.clock import Clock
from saga.core import actions as act
from saga.core import events as ev
from saga.core.policy import Policies
from saga.core.scheduler import Scheduler

Observe = Callable[[ev.Event, list[act.Action]], None]


class EngineControl(Protocol):
    """What can be asked of an engine beside requests; False: it cannot do that."""

    def retain(self, engine: str, session: str, ttl_s: float, score: float) -> bool: ...
    def release(self, engine: str, session: str) -> bool: ...
    def preempt(self, engine: str, request: str) -> bool: ...
    def offload(self, engine: str, session: str) -> bool: ...
    def prefetch(self, engine: str, session: str) -> bool: ...
    def move(self, session: str, source: str, target: str) -> bool: ...


class Refused(Exception):
    """The scheduler does not take the request; ``retry_after_us`` None: never will. With a ``code``
    its whole workflow is refused."""

    def __init__(
        self, reason: str, retry_after_us: int | None, code: act.RefusalCode | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_us = retry_after_us
        self.code = code


@dataclass(slots=True, eq=False)
class LiveRequest:
    """One request between its arrival and its end."""

    id: str
    session: str
    placed: asyncio.Future[act.Dispatch]
    """Done when it was sent to an engine; a new one when it has to wait again."""
    engine: str | None = None
    started: bool = False
    streaming: bool = False
    """Whether bytes of an answer went to the client: it cannot be tried again."""
    interrupt: Callable[[str], None] | None = None
    """Set while an engine works on it: stops that, for the reason given."""


@dataclass(slots=True)
class Counts:
    """What became of the actions that engines have a say in."""

    done: Counter[str] = field(default_factory=Counter)
    unsupported: Counter[str] = field(default_factory=Counter)


class Host:
    """Drives one scheduler. All methods are to be called from the event loop's thread.

    ``observe`` is told every event with the actions that followed (a recording, a live view).
    """

    def __init__(
        self,
        policies: Policies,
        clock: Clock,
        control: EngineControl,
        *,
        observe: Observe | None = None,
        check: bool = False,
    ) -> None:
        self.scheduler = Scheduler(policies, check=check)
        self.requests: dict[str, LiveRequest] = {}
        self.num_held = 0
        """Requests that wait for an engine."""
        self.counts = Counts()
        self.observe = observe
        self._clock = clock
        self._control = control
        self._wake: asyncio.TimerHandle | None = None
        self._wake_at: int | None = None

    @functools.cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    @property
    def now(self) -> int:
        """Microseconds; never before the last event."""
        now, last = self._clock.now_us(), self.scheduler.state.now
        return now if now > last else last

    def tell(self, event: ev.Event) -> None:
        """Passes an event on and does what follows."""
        actions = self.scheduler.handle(event)
        if self.observe is not None:
            self.observe(event, actions)
        for action in actions:
            self._execute(action)

    # ---- requests

    def arrive(
        self,
        request: str,
        session: str,
        prompt_tokens: int,
        expected_output: int | None = None,
        *,
        engine: str | None = None,
    ) -> LiveRequest:
        """A request of an open session; its ``placed`` says when and where to send it.

        ``engine``: the only one that can serve it.
        """
        live = LiveRequest(request, session, self.loop.create_future())
        self.requests[request] = live
        self.num_held += 1
        self.tell(
            ev.RequestArrived(
                at=self.now,
                request=request,
                session=session,
                prompt_tokens=prompt_tokens,
                expected_output_tokens=expected_output,
                engine=engine,
            )
        )
        return live

    def start(self, live: LiveRequest, cached_tokens: int) -> None:
        """The engine has begun to work on it, as far as can be told. Further calls do nothing."""
        if not live.started and live.engine is not None:
            live.started = True
            self.tell(ev.RequestStarted(at=self.now, request=live.id, cached_tokens=cached_tokens))

    def start_at(self, live: LiveRequest, engine: str, cached_tokens: int) -> None:
        """``start``, unless it was sent elsewhere or has ended meanwhile."""
        if live.engine == engine and live.id in self.requests:
            self.start(live, cached_tokens)

    def first_token(self, live: LiveRequest) -> None:
        self.tell(ev.RequestFirstToken(at=self.now, request=live.id))

    def finish(
        self, live: LiveRequest, output_tokens: int, cached_tokens: int | None, tool: str | None
    ) -> None:
        if self._forget(live):
            self.tell(
                ev.RequestFinished(
                    at=self.now,
                    request=live.id,
                    output_tokens=output_tokens,
                    cached_tokens=cached_tokens,
                    tool=tool,
                )
            )

    def fail(self, live: LiveRequest, reason: str) -> None:
        """It ends without an answer (or with half of one)."""
        if live.engine is None:
            self.cancel(live)
        elif self._forget(live):
            self.tell(ev.RequestFailed(at=self.now, request=live.id, reason=reason))

    def cancel(self, live: LiveRequest) -> None:
        """Nobody waits for it any more."""
        if self._forget(live):
            self.tell(ev.RequestCancelled(at=self.now, request=live.id))

    def send_again(self, live: LiveRequest, reason: str) -> None:
        """Its engine could not take it: it waits for a place again."""
        if live.engine is not None:
            self._unplace(live)
            self.tell(ev.RequestFailed(at=self.now, request=live.id, reason=reason, retry=True))

    def end_session(self, session: str, reason: str) -> None:
        """The session is closed: whoever waits for one of its requests is told."""
        for live in [live for live in self.requests.values() if live.session == session]:
            self._forget(live)
            self._turn_away(live, Refused(reason, None))

    def _turn_away(self, live: LiveRequest, refused: Refused) -> None:
        if live.interrupt is not None:
            live.interrupt(refused.reason)
            return
        if live.placed.done():  # it is just going to its engine
            live.engine = None
            live.placed = self.loop.create_future()
        live.placed.set_exception(refused)
        live.placed.exception()  # counts as seen, should its client have left

    def _forget(self, live: LiveRequest) -> bool:
        known = self.requests.pop(live.id, None) is not None
        self.num_held -= known and live.engine is None
        return known

    def _unplace(self, live: LiveRequest) -> None:
        self.num_held += 1
        live.engine = None
        live.started = False
        live.placed = self.loop.create_future()

    # ---- engines

    def engine_down(self, engine: str) -> None:
        """It is gone with what it held: answers that have begun end, the others wait again."""
        here = [live for live in self.requests.values() if live.engine == engine]
        for live in here:
            if live.streaming:
                self.fail(live, f"engine {engine} was lost")
            else:
                self._unplace(live)
            if live.interrupt is not None:
                live.interrupt(f"engine {engine} was lost")
        self.tell(ev.EngineDown(at=self.now, engine=engine))

    # ---- actions

    def _execute(self, action: act.Action) -> None:
        match action:
            case act.Dispatch():
                self._dispatch(action)
            case act.Reject():
                self._reject(action)
            case act.Cancel():
                live = self.requests.get(action.request)
                if live is not None:  # not ended by its client
                    self._forget(live)
                    self._turn_away(live, Refused(action.reason, None))
            case act.WakeAt():
                self._wake_up(action.at)
            case (
                act.Retain()
                | act.Release()
                | act.Preempt()
                | act.Offload()
                | act.Prefetch()
                | act.Move()
            ):
                done = self._ask(action)
                (self.counts.done if done else self.counts.unsupported)[type(action).__name__] += 1
            case _:
                assert_never(action)

    def _dispatch(self, action: act.Dispatch) -> None:
        live = self.requests[action.request]
        self.num_held -= 1
        live.engine = action.engine
        if not live.placed.done():
            live.placed.set_result(action)

    def _reject(self, action: act.Reject) -> None:
        live = self.requests[action.request]
        self._forget(live)
        self._turn_away(live, Refused(action.reason, action.retry_after_us, action.code))

    def _ask(
        self,
        action: (act.Retain | act.Release | act.Preempt | act.Offload | act.Prefetch | act.Move),
    ) -> bool:
        match action:
            case act.Retain():
                ttl_s = max(0, action.until - self.scheduler.state.now) / 1e6
                return self._control.retain(action.engine, action.session, ttl_s, action.score)
            case act.Release():
                return self._control.release(action.engine, action.session)
            case act.Preempt():
                self.requests[action.request].started = False  # its next token says that it resumed
                return self._control.preempt(action.engine, action.request)
            case act.Offload():
                return self._control.offload(action.engine, action.session)
            case act.Prefetch():
                return self._control.prefetch(action.engine, action.session)
            case act.Move():
                return self._control.move(action.session, action.source, action.target)
            case _:
                assert_never(action)

    def _wake_up(self, at: int) -> None:
        if self._wake is not None and self._wake_at is not None and self._wake_at <= at:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake_at = at
        delay = max(0, at - self._clock.now_us()) / 1e6
        self._wake = self.loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._wake = self._wake_at = None
        self.tell(ev.Tick(at=self.now))

    def close(self) -> None:
        """No more ticks."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
