"""What becomes of sessions' KV: where it is, what is kept, dropped and made ready."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from saga.core import actions as act
from saga.core.cache import FOREVER
from saga.core.model import ClusterState, Engine, Session, SessionState
from saga.core.policy import Policies, RetentionPolicy
from saga.core.view import View


class SessionKV:
    """The scheduler's book of KV. Without a retention policy it only keeps count.

    ``do`` takes the actions that follow.
    """

    def __init__(
        self,
        policies: Policies,
        state: ClusterState,
        view: View,
        do: Callable[[act.Action], None],
    ) -> None:
        self._policies = policies
        self._state = state
        self._view = view
        self._do = do
        self.prefetches: list[tuple[int, str, int]] = []
        """When, which session, and the step after which it was planned."""
        self.lapses: list[tuple[int, str, int]] = []
        """The same for sessions that then count in no working set until they are back."""

    def settle_home(self, session: Session, engine: Engine, tokens: int) -> None:
        """The engine accepted a request of the session: it is its home from now on."""
        if session.home is not engine:
            self.leave_home(session, f"its session went to {engine.id}")
            session.home = engine
        session.retained = False
        session.context_tokens = max(session.context_tokens, tokens)
        self.set_resident(session, tokens)

    def leave_home(self, session: Session, reason: str) -> None:
        """Nobody will ask for the KV that it has there."""
        home = session.home
        if home is None or not session.resident_tokens:
            return
        retention = self._retention(home)
        if retention is not None and retention.release_finished:
            session.retained = False
            self._do(act.Release(engine=home.id, session=session.id, reason=reason))
        self.set_resident(session, 0)

    def set_resident(self, session: Session, tokens: int) -> None:
        assert session.home is not None
        held_us = self._state.now - session.resident_since
        session.workflow.kv_us += (
            held_us * session.resident_tokens / session.home.kv_capacity_tokens
        )
        session.resident_since = self._state.now
        session.home.resident_tokens += tokens - session.resident_tokens
        session.resident_tokens = tokens
        self._view.loads.touch(session.home)

    def assign(self, session: Session, engine: Engine | None, tokens: int) -> None:
        """Counts the session in the working set of the engine that has or will have its KV."""
        before, tenant = session.assigned, session.workflow.tenant
        if before is not None:
            tenant.committed_tokens -= session.committed_tokens + session.growth_tokens
            before.committed_tokens -= session.committed_tokens
            before.growth_tokens -= session.growth_tokens
            del before.sessions[session.id]
            self._view.loads.touch(before)
        session.assigned = engine
        session.committed_tokens = session.growth_tokens = 0
        if engine is not None:
            session.committed_tokens = tokens
            session.growth_tokens = self._growth(session, tokens)
            tenant.committed_tokens += tokens + session.growth_tokens
            engine.committed_tokens += tokens
            engine.growth_tokens += session.growth_tokens
            engine.sessions[session.id] = session
            self._view.loads.touch(engine)

    def _growth(self, session: Session, tokens: int) -> int:
        admission = self._policies.admission
        return 0 if admission is None else admission.growth_tokens(session, tokens, self._view)

    def protect_queued(self, session: Session) -> None:
        home = session.home
        if home is None or not session.resident_tokens:
            return
        retention = self._retention(home)
        if retention is not None and retention.protect_queued:
            self.retain(session, home, FOREVER, 1.0, "its next request is here")

    def demote(self, session: Session, reason: str) -> None:
        """Its next request will not come soon: its KV goes before that of others."""
        home = session.home
        if home is not None and session.resident_tokens and self._retention(home) is not None:
            self.retain(session, home, self._state.now, 0.0, reason)

    def begin_gap(self, session: Session) -> None:
        """A step ended: what becomes of the session's KV until it returns?"""
        if session.home is None:
            return
        offload = self._policies.offload
        prefetch = self._policies.prefetch if session.home.prefetches else None
        retention = self._retention(session.home)
        self.begin_absence(session)
        hold = retention.hold(session, self._view) if retention is not None else None
        if hold is not None:
            self.retain(session, session.home, hold.until, hold.score, hold.reason)
        if offload is not None and offload.offload_now(session, self._view):
            self._do(act.Offload(engine=session.home.id, session=session.id, reason="long gap"))
        if prefetch is not None:
            at = prefetch.at(session, self._view)
            if at is not None:
                heapq.heappush(self.prefetches, (at, session.id, session.num_steps))

    def begin_absence(self, session: Session) -> None:
        """It has no request: for how long does it count in the working set?"""
        admission = self._policies.admission
        if admission is not None:
            absent = self._state.now + admission.absence_us(session, self._view)
            heapq.heappush(self.lapses, (absent, session.id, session.num_steps))

    def retain(
        self, session: Session, engine: Engine, until: int, score: float, reason: str
    ) -> None:
        session.retained = True
        self._do(
            act.Retain(
                engine=engine.id, session=session.id, until=until, score=score, reason=reason
            )
        )

    def _retention(self, engine: Engine) -> RetentionPolicy | None:
        return self._policies.retention if engine.retains else None

    def lapse_due(self) -> None:
        """Sessions that are away for longer than expected leave their working set."""
        for session in self._still_away(self.lapses):
            self.assign(session, None, 0)

    def _still_away(self, plans: list[tuple[int, str, int]]) -> Iterator[Session]:
        """Takes the plans that are due, and gives those whose session has not been back since."""
        while plans and plans[0][0] <= self._state.now:
            _, session_id, num_steps = heapq.heappop(plans)
            session = self._state.sessions.get(session_id)
            if (
                session is not None
                and session.state is SessionState.ACTING
                and session.num_steps == num_steps
            ):
                yield session

    def prefetch_due(self) -> None:
        for session in self._still_away(self.prefetches):
            if session.home is not None and session.resident_tokens < session.context_tokens:
                session.num_prefetches += 1
                self._do(
                    act.Prefetch(
                        engine=session.home.id, session=session.id, reason="return is near"
                    )
                )
