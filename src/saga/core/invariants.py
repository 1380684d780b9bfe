"""The numbered laws, as checks on a scheduler's state.

The numbers are those of ``docs/architecture.md``. Laws about a whole run (8 determinism, 9 purity,
10 oracle boundary, 13 host parity) are tests; 4 and 5 are also checked by every engine's own cache.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from saga.core.errors import InvariantError
from saga.core.model import RequestState, SessionState

if TYPE_CHECKING:
    from saga.core.scheduler import Scheduler


def check(scheduler: Scheduler) -> None:
    """Raises ``InvariantError`` with the law, the numbers and the last events."""
    for law in (_conservation, _lifecycle, _residency, _homes, _work_conservation, _service):
        broken = law(scheduler)
        if broken is not None:
            number = law.__doc__ or ""
            story = "\n  ".join(str(event) for event in scheduler.story)
            raise InvariantError(f"law {number} broken: {broken}\nlast events:\n  {story}")


def _conservation(scheduler: Scheduler) -> str | None:
    """1 Conservation: arrived = queued + dispatched + running + ended, each in one place"""
    state = scheduler.state
    if state.num_arrived != len(state.requests) + sum(state.num_ended.values()):
        return f"{state.num_arrived} arrived, {len(state.requests)} live, {state.num_ended} ended"
    waiting = list(scheduler.unplaced)
    for queue in (scheduler.unadmitted, *scheduler.queues.values()):
        waiting += [request.id for request in queue.requests()]
    sent = [request for engine in state.engines.values() for request in engine.requests]
    queued = [r.id for r in state.requests.values() if r.state is RequestState.QUEUED]
    if sorted(waiting) != sorted(queued):
        return f"queued are {sorted(queued)}, in queues {sorted(waiting)}"
    if sorted(sent) != sorted(state.requests.keys() - set(queued)):
        return f"live are {sorted(state.requests)}, in queues {queued}, on engines {sent}"
    for engine in state.engines.values():
        here = Counter(request.state for request in engine.requests.values())
        counted = (engine.num_waiting, engine.num_running, engine.num_queued)
        actual = (
            here[RequestState.DISPATCHED],
            here[RequestState.RUNNING],
            len(scheduler.queues[engine.id]),
        )
        if counted != actual:
            return f"engine {engine.id!r} counts (waiting, running, queued) {counted}, has {actual}"
        running = {id for id, r in engine.requests.items() if r.state is RequestState.RUNNING}
        if running != engine.running.keys():
            return f"engine {engine.id!r} lists {sorted(engine.running)}, runs {sorted(running)}"
    return None


def _lifecycle(scheduler: Scheduler) -> str | None:
    """2 Lifecycle: a session's state says what its requests do; none runs that is not admitted"""
    for session in scheduler.state.sessions.values():
        states = {request.state for request in session.requests.values()}
        on_engine = states & {RequestState.DISPATCHED, RequestState.RUNNING}
        fits = {
            SessionState.ACTING: not states,
            SessionState.WAITING: RequestState.QUEUED in states,
            SessionState.REASONING: bool(on_engine),
            SessionState.DONE: False,
        }
        if not fits[session.state]:
            return f"session {session.id!r} is {session.state} with requests {sorted(states)}"
        if not session.admitted and (on_engine or session.assigned is not None):
            return f"session {session.id!r} is not admitted, and uses memory"
    return None


def _residency(scheduler: Scheduler) -> str | None:
    """4 KV: what an engine counts is the sum over its sessions"""
    state = scheduler.state
    resident: Counter[str] = Counter()
    committed: Counter[str] = Counter()
    sessions: dict[str, set[str]] = defaultdict(set)
    owned: Counter[str] = Counter()
    for session in state.sessions.values():
        if session.home is not None:
            resident[session.home.id] += session.resident_tokens
        if session.assigned is not None:
            committed[session.assigned.id] += session.committed_tokens
            owned[session.workflow.tenant.id] += session.committed_tokens + session.growth_tokens
            sessions[session.assigned.id].add(session.id)
    for engine in state.engines.values():
        counted = (engine.resident_tokens, engine.committed_tokens, set(engine.sessions))
        actual = (resident[engine.id], committed[engine.id], sessions[engine.id])
        if counted != actual:
            return (
                f"engine {engine.id!r} counts (resident, committed, sessions) {counted}: {actual}"
            )
    for tenant in state.tenants.values():
        if tenant.committed_tokens != owned[tenant.id]:
            return f"tenant {tenant.id!r} counts {tenant.committed_tokens}, has {owned[tenant.id]}"
    return None


def _homes(scheduler: Scheduler) -> str | None:
    """6 One home per session: a live engine, and none before the first acceptance"""
    engines = scheduler.state.engines
    for session in scheduler.state.sessions.values():
        for engine in (session.home, session.assigned):
            if engine is not None and engines.get(engine.id) is not engine:
                return f"session {session.id!r} is at {engine.id!r}, which is gone"
        if session.home is None and session.resident_tokens:
            return f"session {session.id!r} has {session.resident_tokens} KV tokens and no home"
    return None


def _work_conservation(scheduler: Scheduler) -> str | None:
    """7 Work conservation: nobody queues beside room, and every wait has a reason"""
    for engine in scheduler.state.engines.values():
        if scheduler.queues[engine.id] and scheduler.has_room(engine):
            return f"engine {engine.id!r} has room and {engine.num_queued} queued requests"
    for request in scheduler.state.requests.values():
        if request.state is RequestState.QUEUED and not request.reason:
            return f"request {request.id!r} waits without a recorded reason"
    return None


def _service(scheduler: Scheduler) -> str | None:
    """11 Service: queued counts are right, and nobody is further off its share than proved"""
    queued = Counter(
        request.session.workflow.tenant.id
        for request in scheduler.state.requests.values()
        if request.state is RequestState.QUEUED
    )
    for tenant in scheduler.state.tenants.values():
        if tenant.num_queued != queued[tenant.id]:
            return (
                f"tenant {tenant.id!r} counts {tenant.num_queued} queued, has {queued[tenant.id]}"
            )
    for queue in (scheduler.unadmitted, *scheduler.queues.values()):
        if queue.deviation > 1.0 + 1e-9:
            return f"a tenant was off its share by {queue.deviation} of the bound"
    return None
