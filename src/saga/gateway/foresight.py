"""What the sessions under way will probably do next, learned from what their like have done.

Nothing is decided by it yet: it is told (``/v1/saga/workflows/{id}``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saga.core.forecast import Forecasts, Progress
from saga.gateway.sessions import LiveSession

LEARNED_PER_S = 500
"""Steps; of more in a second the rest is not learned from, so that a gateway at its limit does not
spend more than some percent of its time on it."""
SECOND = 1_000_000
MOST_TOLD = 3
"""Labels of the next step."""


@dataclass(slots=True)
class _Watched:
    """One session."""

    progress: Progress = field(default_factory=Progress)
    ended: int | None = None
    """When its last step did; None before the first."""
    context_tokens: int = 0


class Foresight:
    """Is told of answered steps and of sessions that are over. Bounded by the sessions there are.

    Forecasts are learned per agent type, whose names begin with their tenant: apart for each.
    """

    def __init__(self) -> None:
        self.forecasts = Forecasts()
        self.num_left_out = 0
        self._watched: dict[str, tuple[str, _Watched]] = {}
        """By session: its agent type, and what is known of it."""
        self._second = 0
        self._learned = 0
        """Steps in that second."""

    def answered(
        self,
        session: LiveSession,
        tool: str | None,
        *,
        arrived: int,
        ended: int,
        prompt_tokens: int,
        output_tokens: int,
    ) -> None:
        """A step of the session ended; its request had arrived then. Microseconds."""
        if session.ends or not self._may_learn(ended):
            self._watched.pop(session.id, None)  # what follows would follow a gap
            return
        kind = session.workflow.agent_type
        _, watched = self._watched.setdefault(session.id, (kind, _Watched()))
        model, progress = self.forecasts.of(kind), watched.progress
        if watched.ended is not None:
            if arrived < watched.ended:  # requests that overlap: not a chain of steps
                return
            new_tokens = prompt_tokens - watched.context_tokens
            model.returned(
                progress, arrived - watched.ended, max(0, new_tokens), cut=new_tokens < 0
            )
        model.step(progress, tool, output_tokens)
        watched.ended, watched.context_tokens = ended, prompt_tokens + output_tokens

    def closed(self, session: str) -> None:
        """No further step of it will come."""
        known = self._watched.pop(session, None)
        if known is not None:
            kind, watched = known
            self.forecasts.of(kind).ended(watched.progress)

    def of(self, session: str, now: int) -> dict[str, Any] | None:
        """What is foreseen of a session that is away; None where nothing is. Seconds from now."""
        kind, watched = self._watched.get(session, ("", None))
        if watched is None or watched.ended is None:
            return None
        model, progress = self.forecasts.of(kind), watched.progress
        waited = max(0, now - watched.ended)
        back = model.return_time(progress).after(waited)
        left = model.steps_left(progress)
        chances = sorted(model.next_labels(progress).items(), key=lambda item: -item[1])
        return {
            "next": dict(chances[:MOST_TOLD]),
            "back_in_s": {
                name: max(0.0, back.quantile(p) - waited) / SECOND
                for name, p in (("p50", 0.5), ("p95", 0.95))
            },
            "reliability": back.reliability,
            "steps_left": {"p50": left.quantile(0.5), "p95": left.quantile(0.95)},
            "p_reuse": model.p_reuse(progress, watched.context_tokens),
            "tokens_left": {
                name: {"new": work.new_tokens, "output": work.output_tokens}
                for name, p in (("p50", 0.5), ("p95", 0.95))
                for work in (model.work_left(progress, p),)
            },
            "output_tokens": model.output_tokens(progress).typical,
            "new_tokens": model.new_tokens(progress).typical,
        }

    def _may_learn(self, now: int) -> bool:
        second = now // SECOND
        if second != self._second:
            self._second, self._learned = second, 0
        self._learned += 1
        if self._learned <= LEARNED_PER_S:
            return True
        self.num_left_out += 1
        return False
