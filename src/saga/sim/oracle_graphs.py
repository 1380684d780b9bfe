"""Agent execution graphs that cannot err: what perfect knowledge of them would be worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from saga.core.graph import GraphStore, RemainingWork
from saga.core.policy import SessionView
from saga.traces.script import StepScript, WorkflowScript


class OracleGraphs(GraphStore):
    """Answers from the script of each session, and learns as any other store does.

    Sessions are known by ``WorkflowScript.session_id``; any other is a KeyError. An upper bound for
    experiments: nothing but a simulator can have it.
    """

    def __init__(self, scripts: Iterable[WorkflowScript]) -> None:
        super().__init__()
        self._steps: dict[str, tuple[StepScript, ...]] = {}
        self._left: dict[str, list[RemainingWork]] = {}
        """By session: what is left after so many steps."""
        for script in scripts:
            for index, left in _left(script).items():
                self._steps[script.session_id(index)] = script.sessions[index].steps
                self._left[script.session_id(index)] = left

    def p_reuse(self, session: SessionView) -> float:
        """Eq. 5 with what the next step brings and keeps; 0 if there is none."""
        steps, done = self._steps[session.id], session.num_steps
        if done == len(steps):
            return 0.0
        following, cached = steps[done], session.resident_tokens
        return min(cached, following.kept_tokens) / (cached + following.new_tokens)

    def remaining(self, session: SessionView) -> RemainingWork:
        """Its steps to come, and those of the sub-agents that they will start."""
        return self._left[session.id][session.num_steps]


def _left(script: WorkflowScript) -> dict[int, list[RemainingWork]]:
    answers: dict[int, list[RemainingWork]] = {}
    spawned: defaultdict[tuple[int | None, int], list[RemainingWork]] = defaultdict(list)
    """Whole sub-agents, by parent and step."""
    for index, session in reversed(list(enumerate(script.sessions))):  # children before parents
        left = [RemainingWork()]
        for number, step in reversed(list(enumerate(session.steps))):
            own = RemainingWork(1, step.new_tokens, step.output_tokens)
            left.append(sum(spawned[index, number], left[-1] + own))
        answers[index] = left[::-1]
        spawned[session.parent, session.spawn_step].append(left[-1])
    return answers
