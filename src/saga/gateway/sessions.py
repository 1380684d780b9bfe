"""Workflows and sessions that are alive: opened by their first request, closed by their client, or
when they have been away for much longer than their tool usually takes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from saga.core import events as ev
from saga.gateway.host import Host
from saga.gateway.identity import Identity

SECOND = 1_000_000
PATIENCE = 3.0
"""How many times its tool's usual return time a session may be away."""
SHORTEST_PATIENCE_US = 120 * SECOND
UNKNOWN_PATIENCE_US = 600 * SECOND
"""For tools that were never seen."""
TOKENS_PER_BYTE = 0.25
"""Of a JSON body, until an engine has told."""
LARGEST_ESTIMATE = 0.5
"""Of an engine's KV memory. A picture has many bytes and few tokens, and must not be refused or
held back for its bytes; a prompt that is really too long is refused by the engine."""


@dataclass(slots=True, eq=False)
class LiveWorkflow:
    """``id`` is scoped by the tenant, as are the sessions'."""

    id: str
    tenant: str
    agent_type: str
    source: str
    submitted: int
    sessions: dict[str, LiveSession] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class LiveSession:
    id: str
    workflow: LiveWorkflow
    num_inflight: int = 0
    ends: bool = False
    """Its client said that the request under way is its last."""
    tool: str | None = None
    step: str | None = None
    """Where in the client's program it is, if that tells."""
    prompt_tokens: int = 0
    """Of its last answered request, by the engine's count, and the size of that request's body."""
    body_bytes: int = 0
    patience_ends: int = 0
    """When it counts as gone, while nothing of it is under way."""


@dataclass(frozen=True, slots=True)
class _Home:
    engine: str
    tokens: int


class Sessions:
    """What the host is told about workflows and sessions. Bounded by ``max_sessions``.

    ``closed`` is told of every session that is over.
    """

    def __init__(
        self,
        host: Host,
        *,
        idle_us: int,
        max_sessions: int,
        closed: Callable[[str], None] = lambda session: None,
    ) -> None:
        self.workflows: dict[str, LiveWorkflow] = {}
        self.sessions: dict[str, LiveSession] = {}
        self.declared: dict[str, float] = {}
        """Mean steps by scoped agent type, where a client declared its graph."""
        self.num_reaped = 0
        self._host = host
        self._closed = closed
        self._idle_us = idle_us
        self._max_sessions = max_sessions
        self._idle: OrderedDict[str, LiveSession] = OrderedDict()
        """Nothing of them is under way; the one that is away for longest first."""
        self._deadlines: list[tuple[int, str]] = []
        self._homes: OrderedDict[str, _Home] = OrderedDict()
        """Where closed sessions left their KV: one that comes back after all goes there."""
        self._tokens_per_byte: OrderedDict[str, float] = OrderedDict()
        """By model."""

    # ---- coming and going

    def enter(
        self,
        tenant: str,
        weight: float,
        identity: Identity,
        fingerprint: Callable[[], str | None] = lambda: None,
    ) -> LiveSession:
        """The session of a request that begins; opened if need be. Pair it with ``leave``.

        ``fingerprint`` tells agents of one harness apart; it is asked for new workflows only.
        """
        name = scoped(tenant, identity.session)
        auxiliary = identity.kind == "auxiliary"
        if auxiliary:  # it shares nothing with the chain it is named after
            name += "#auxiliary"
        session = self.sessions.get(name)
        if session is None:
            self._make_room()
            workflow = self._workflow(tenant, weight, identity, fingerprint)
            session = self._open(name, workflow, identity)
        session.num_inflight += 1
        session.ends = identity.final or auxiliary or identity.confidence == "none"
        self._idle.pop(name, None)
        return session

    def leave(self, session: LiveSession, tool: str | None) -> None:
        """A request of the session ended."""
        session.num_inflight -= 1
        session.tool = tool
        if session.num_inflight or self.sessions.get(session.id) is not session:
            return
        if session.ends:
            self.close(session)
            return
        now = self._host.now
        session.patience_ends = now + self._patience_us(tool, session.workflow.tenant)
        self._idle[session.id] = session
        self._idle.move_to_end(session.id)
        self._look_again(session.patience_ends, session.id)

    # ---- what clients announce between requests

    def tool_started(self, session: LiveSession, tool: str) -> bool:
        """A tool runs; False if this says nothing: a request is under way, or another tool is
        known to run, whose return time this is."""
        if session.num_inflight or session.tool not in (None, tool):
            return False
        if session.tool is None:
            session.tool = tool
            session.patience_ends = self._host.now + self._patience_us(
                tool, session.workflow.tenant
            )
            self._look_again(session.patience_ends, session.id)
        self._host.tell(ev.ToolStarted(at=self._host.now, session=session.id, tool=tool))
        return True

    def tool_finished(self, session: LiveSession) -> None:
        self._host.tell(ev.ToolFinished(at=self._host.now, session=session.id))

    def end_session(self, session: LiveSession) -> None:
        """Its client said that no further request will come; what is under way goes on."""
        session.ends = True
        if not session.num_inflight:
            self.close(session)

    def end(self, workflow: LiveWorkflow) -> bool:
        """The same of a whole workflow; False if it is over already."""
        if self.workflows.get(workflow.id) is not workflow:
            return False
        if not workflow.sessions:
            self.finish(workflow)
        for session in list(workflow.sessions.values()):
            self.end_session(session)
        return True

    # ---- bookkeeping

    def _look_again(self, at: int, name: str) -> None:
        heapq.heappush(self._deadlines, (at, name))
        if len(self._deadlines) > 4 * (len(self.sessions) + len(self.workflows)) + 64:
            self._forget_old_deadlines()

    def _forget_old_deadlines(self) -> None:
        self._deadlines = [(s.patience_ends, s.id) for s in self._idle.values()]
        self._deadlines += [
            (self._ends(workflow), workflow.id)
            for workflow in self.workflows.values()
            if not workflow.sessions
        ]
        heapq.heapify(self._deadlines)

    def close(self, session: LiveSession) -> None:
        """No further request of it is expected; the last one of a workflow ends that."""
        self._remember_home(session)
        workflow = session.workflow
        self._drop(session)
        if workflow.sessions:
            self._host.tell(ev.SessionClosed(at=self._host.now, session=session.id))
        else:
            del self.workflows[workflow.id]
            self._host.tell(ev.WorkflowDone(at=self._host.now, workflow=workflow.id))

    def finish(self, workflow: LiveWorkflow) -> None:
        """Its client said that it is over; what is under way is cancelled."""
        gone = list(workflow.sessions)
        for session in list(workflow.sessions.values()):
            self._homes.pop(session.id, None)
            self._drop(session)
        del self.workflows[workflow.id]
        self._host.tell(ev.WorkflowDone(at=self._host.now, workflow=workflow.id))
        for name in gone:
            self._host.end_session(name, "its workflow was finished by its client")

    def reap(self) -> int:
        """Closes sessions that are away for too long; how many."""
        now, reaped = self._host.now, 0
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, name = heapq.heappop(self._deadlines)
            session = self._idle.get(name)
            if session is not None and session.patience_ends == deadline:
                self.close(session)
                reaped += 1
            workflow = self.workflows.get(name)
            if workflow is not None and not workflow.sessions and self._ends(workflow) == deadline:
                self.finish(workflow)
        self.num_reaped += reaped
        return reaped

    def _ends(self, workflow: LiveWorkflow) -> int:
        """When one without sessions counts as gone."""
        return workflow.submitted + self._idle_us

    def _drop(self, session: LiveSession) -> None:
        del self.sessions[session.id]
        del session.workflow.sessions[session.id]
        self._idle.pop(session.id, None)
        self._closed(session.id)

    def declare(
        self,
        tenant: str,
        weight: float,
        name: str,
        *,
        source: str = "declared",
        agent_type: str | None = None,
        mean_steps: float | None = None,
        deadline_us: int | None = None,
        priority: float | None = None,
    ) -> LiveWorkflow:
        """A workflow exists from now on; ``deadline_us`` counts from now. One without sessions
        counts as gone like a session that stays away."""
        now, name = self._host.now, scoped(tenant, name)
        kind = scoped(tenant, agent_type or source)
        workflow = self.workflows[name] = LiveWorkflow(name, tenant, kind, source, now)
        self._host.tell(
            ev.WorkflowSubmitted(
                at=now,
                workflow=name,
                tenant=tenant,
                agent_type=kind,
                weight=weight,
                deadline=None if deadline_us is None else now + deadline_us,
                mean_steps=mean_steps or self.declared.get(kind),
                priority=priority or 1.0,
            )
        )
        self._look_again(self._ends(workflow), name)
        return workflow

    def _workflow(
        self,
        tenant: str,
        weight: float,
        identity: Identity,
        fingerprint: Callable[[], str | None],
    ) -> LiveWorkflow:
        known = self.workflows.get(scoped(tenant, identity.workflow))
        if known is not None:
            return known
        kind = identity.agent_type
        if kind is None and scoped(tenant, identity.source) not in self.declared:
            told = fingerprint()
            kind = None if told is None else f"{identity.source}#{told}"
        return self.declare(
            tenant,
            weight,
            identity.workflow,
            source=identity.source,
            agent_type=kind,
            deadline_us=identity.deadline_us,
            priority=identity.priority,
        )

    def _make_room(self) -> None:
        """For one more session. This may end a workflow, so the new one's is sought after it."""
        if len(self.sessions) >= self._max_sessions and self._idle:
            self.close(next(iter(self._idle.values())))
            self.num_reaped += 1

    def _open(self, name: str, workflow: LiveWorkflow, identity: Identity) -> LiveSession:
        session = LiveSession(name, workflow)
        self.sessions[name] = workflow.sessions[name] = session
        parent = identity.parent
        self._host.tell(
            ev.SessionOpened(
                at=self._host.now,
                session=name,
                workflow=workflow.id,
                parent=None if parent is None else scoped(workflow.tenant, parent),
            )
        )
        home = self._homes.pop(name, None)
        if home is not None and home.engine in self._host.scheduler.state.engines:
            self._host.tell(
                ev.BlocksStored(
                    at=self._host.now, engine=home.engine, session=name, num_tokens=home.tokens
                )
            )
        return session

    def _remember_home(self, session: LiveSession) -> None:
        known = self._host.scheduler.state.sessions.get(session.id)
        if known is None or known.home is None or not known.resident_tokens or session.ends:
            return
        self._homes[session.id] = _Home(known.home.id, known.resident_tokens)
        self._homes.move_to_end(session.id)
        if len(self._homes) > self._max_sessions:
            self._homes.popitem(last=False)

    def _patience_us(self, tool: str | None, owner: str) -> int:
        usual = self._host.scheduler.view.return_times.quantile(tool, 0.95, owner=owner)
        if usual is None:
            return min(UNKNOWN_PATIENCE_US, self._idle_us)
        return min(max(SHORTEST_PATIENCE_US, int(PATIENCE * usual)), self._idle_us)

    # ---- sizes

    def estimate(self, session: LiveSession, body_bytes: int, model: str) -> int:
        """Prompt tokens of a body, from what the session's last one was counted as."""
        per_byte = self._tokens_per_byte.get(model, TOKENS_PER_BYTE)
        grown = body_bytes - session.body_bytes
        guess = session.prompt_tokens + int(grown * per_byte)
        largest = self._host.scheduler.max_capacity
        if largest:
            guess = min(guess, max(session.prompt_tokens, int(LARGEST_ESTIMATE * largest)))
        return max(1, guess)

    def counted(
        self, session: LiveSession, body_bytes: int, model: str, prompt_tokens: int
    ) -> None:
        """An engine has counted the prompt tokens of a body."""
        session.prompt_tokens = prompt_tokens
        session.body_bytes = body_bytes
        if body_bytes:
            ratio = prompt_tokens / body_bytes
            before = self._tokens_per_byte.pop(model, ratio)
            self._tokens_per_byte[model] = 0.9 * before + 0.1 * ratio
            if len(self._tokens_per_byte) > 256:
                self._tokens_per_byte.popitem(last=False)


def scoped(tenant: str, name: str) -> str:
    """Ids of different tenants never meet: a tenant's name contains no slash."""
    return f"{tenant}/{name}"
