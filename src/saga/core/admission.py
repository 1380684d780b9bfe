"""Which sessions may use memory: who is let in, and who goes back to waiting after a tool call."""

from __future__ import annotations

from collections.abc import Callable

from saga.core.deadlines import Deadlines
from saga.core.fairness import ServiceLedger
from saga.core.model import ClusterState, Request, RequestState, Session, SessionState
from saga.core.policy import AdmissionPolicy, Policies
from saga.core.queues import FairQueue
from saga.core.session_kv import SessionKV
from saga.core.view import View

NUM_ASKED = 4
"""Tenants whose next session is tried, best first, before all wait for room."""


class Admission:
    """Asks the admission policy. Without one everybody is in.

    ``queue`` has the requests of sessions that are not; ``place`` takes those that are.
    """

    def __init__(
        self,
        policies: Policies,
        state: ClusterState,
        view: View,
        ledger: ServiceLedger,
        kv: SessionKV,
        place: Callable[[Request], None],
    ) -> None:
        fairness = policies.fairness
        self.queue = FairQueue(None if fairness is None else fairness.start_limit)
        self.deadlines = Deadlines(policies, self.queue, view)
        self._policy = policies.admission
        self._ordering = policies.ordering
        self._state = state
        self._view = view
        self._ledger = ledger
        self._kv = kv
        self._place = place

    def wait(self, request: Request) -> None:
        """Its session may not use memory now."""
        key = self._ordering.key(request, self._view)
        if request.gave_way_to is not None:
            key = max(key, self._ordering.key(request.gave_way_to, self._view))
        self.deadlines.enter(request, key)
        self.queue.push(request, key)

    def must_pause(self, request: Request) -> bool:
        """Whether its session, which is back from a tool, is no longer in: memory is short, or it
        had its turn and others wait for too long."""
        policy, session = self._policy, request.session
        if policy is None or not session.num_steps or len(session.requests) > 1:
            return False
        verdict = policy.stay(request, self._view)
        if verdict.admit and self.queue.members:
            first = min(self.queue.first(NUM_ASKED), key=lambda head: head.arrived)
            verdict = policy.outstay(request, first, self._view)
            if not verdict.admit:
                self._give_way(session)
                request.gave_way_to = first
        if verdict.admit:
            return False
        request.reason = verdict.reason
        self._pause(session, verdict.reason)
        return True

    def _give_way(self, session: Session) -> None:
        session.workflow.ranked_at = self._state.now
        engine = session.assigned
        if engine is not None:
            engine.turns.append((self._state.now, engine.cost_us(session.context_tokens, 0)))

    def _pause(self, session: Session, reason: str) -> None:
        session.admitted = False
        self._state.num_pauses += 1
        self._kv.assign(session, None, 0)
        self._kv.demote(session, reason)

    def let_in(self) -> None:
        """Starts sessions in their order for as long as the policy agrees."""
        policy = self._policy
        if policy is None or not self._view.engines:
            return
        while (head := self._next(policy)) is not None:
            session = head.session
            session.admitted, session.admitted_at = True, self._state.now
            self.deadlines.let_in(head)
            self._ledger.start(head, self._view, self.queue)
            self._place(head)
            for request in list(session.requests.values()):
                if request in self.queue:
                    self.queue.remove(request)
                    self._place(request)
            if head.state is RequestState.QUEUED:
                self._kv.protect_queued(session)

    def _next(self, policy: AdmissionPolicy) -> Request | None:
        """The first that may start now. One that does not fit yet lets others by, who use up their
        lead over it by that."""
        for head in self.queue.first(NUM_ASKED):
            if self._stands_back(head):
                continue
            verdict = policy.admit(head, self._view)
            if not verdict.admit and self._excuse_ancestors(head.session):
                verdict = policy.admit(head, self._view)
            if verdict.admit:
                return head
            head.reason = verdict.reason
        return None

    def _stands_back(self, head: Request) -> bool:
        """Whether it leaves the room to whom it gave way: until that one is in, or it has waited
        half as long itself."""
        first, now = head.gave_way_to, self._state.now
        if first is None or first not in self.queue:
            return False
        return 2 * (now - head.arrived) < now - first.arrived

    def _excuse_ancestors(self, session: Session) -> bool:
        """Those who wait for a session that is not in will not be back before it, and need not
        count as memory: else both could wait for each other."""
        sessions, any_excused = session.workflow.sessions, False
        for _ in range(len(sessions)):  # clients may claim circles
            parent = sessions.get(session.parent or "")
            if parent is None:
                break
            session = parent
            if session.state is SessionState.ACTING and session.assigned is not None:
                self._kv.assign(session, None, 0)
                any_excused = True
        return any_excused
