"""What a workflow will do when it is played: sizes, tools and times, never text.

A script is the future of a workflow. Hosts that play scripts (the simulator, load generators) may
read all of it; schedulers and policies never see one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScript:
    """One LLM call of a session and the gap that follows it."""

    kept_tokens: int
    """Prompt tokens shared, as a prefix, with the context (prompt + output) that the session's
    previous step left. First step: with the shared prefix or the context it was forked from."""
    new_tokens: int
    """Prompt tokens after the kept ones. ``kept_tokens + new_tokens`` is the whole prompt."""
    output_tokens: int
    """Generated tokens, at least 1."""
    tool: str | None = None
    """Tool called after this step; None when the trace does not tell or no tool is called."""
    tool_us: int = 0
    """Time inside the tool, microseconds, where known; never more than ``gap_us``."""
    gap_us: int = 0
    """Return time: end of this step to the arrival of the session's next request, microseconds.
    Without sub-agents, which are waited for in addition. 0 on the last step."""

    @property
    def prompt_tokens(self) -> int:
        return self.kept_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionScript:
    """One chain of LLM calls with one KV lineage."""

    steps: tuple[StepScript, ...]
    prefix: str | None = None
    """Name of the declared system prefix (system prompt and tool schemas) that this session shares
    with every session, of any workflow, that names the same one."""
    prefix_tokens: int = 0
    parent: int | None = None
    """Index in ``WorkflowScript.sessions`` of the session that spawned it; None for the root."""
    spawn_step: int = 0
    """The parent's step (0-based) after whose end this session starts."""
    delay_us: int = 0
    """From the end of that step to this session's first request."""
    forked_tokens: int = 0
    """Tokens of the parent's context, as it stood after ``spawn_step``, that the first prompt
    begins with. 0: the first prompt shares no more than the declared prefix."""
    blocking: bool = True
    """Whether the parent's next step waits for this session to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowScript:
    """One agent task: the root session (index 0) and its sub-agents, parents before children."""

    id: str
    sessions: tuple[SessionScript, ...]
    tenant: str = "default"
    tenant_class: str = "default"
    agent_type: str = "agent"
    submitted_us: int | None = None
    """Arrival time in the source trace, microseconds from its start; None where it has none."""

    def session_id(self, index: int) -> str:
        """What a session is called in a run of the simulator."""
        return f"{self.id}/{index}"

    @property
    def num_steps(self) -> int:
        return sum(len(session.steps) for session in self.sessions)

    def in_order(self) -> Iterator[tuple[int, int]]:
        """All steps as (session, step): a sub-agent's follow the step that spawned it."""
        spawned: defaultdict[tuple[int | None, int], list[int]] = defaultdict(list)
        for number, session in enumerate(self.sessions):
            spawned[session.parent, session.spawn_step].append(number)
        waiting = [(0, 0)]
        while waiting:
            number, index = waiting.pop()
            yield number, index
            if index + 1 < len(self.sessions[number].steps):
                waiting.append((number, index + 1))
            waiting += [(child, 0) for child in reversed(spawned[number, index])]

    @property
    def max_context_tokens(self) -> int:
        """Longest context (prompt + output) that any step of the workflow reaches."""
        return max(
            step.prompt_tokens + step.output_tokens
            for session in self.sessions
            for step in session.steps
        )
