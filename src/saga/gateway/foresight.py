"""What the sessions under way will probably do next, learned from what their like have done.

Nothing is decided by it yet: it is told (``/v1/saga/workflows/{id}``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saga.core.forecast import Forecasts, Progress
from saga.gateway.sessions import LiveSession

LEARNED_PER_S = 500
"""Steps, in equal parts for the tenants of the second before. Of sessions with more nothing further
is learned, so that a gateway at its limit does not spend more than some percent of its time on it.
"""
SECOND = 1_000_000
MOST_TOLD = 3
"""Labels of the next step."""


@dataclass(slots=True)
class _Watched:
    """One session."""

    agent_type: str
    progress: Progress = field(default_factory=Progress)
    ended: int | None = None
    """When its last step did; None before the first."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Of that step."""
    left_out: bool = False
    """A step of it was: what follows is no chain, and nothing more is learned from it."""


class Foresight:
    """Is told of answered steps and of sessions that are over. Bounded by the sessions there are.

    Forecasts are learned per agent type, whose names begin with their tenant: apart for each.
    """

    def __init__(self) -> None:
        self.forecasts = Forecasts()
        self.num_left_out = 0
        self._watched: dict[str, _Watched] = {}
        self._second = 0
        self._learned: dict[str, int] = {}
        """Steps in that second, by tenant."""
        self._share = LEARNED_PER_S
        """What each tenant may have of them."""

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
        watched = self._watched.get(session.id)
        if watched is None:
            if session.ends:  # one request and no more: nothing followed, nothing will
                return
            watched = self._watched[session.id] = _Watched(session.workflow.agent_type)
        if watched.left_out or not self._may_learn(session.workflow.tenant, ended):
            watched.left_out = True
            return
        model, progress = self.forecasts.of(watched.agent_type), watched.progress
        if watched.ended is not None:
            if arrived < watched.ended:  # requests that overlap: not a chain of steps
                return
            new_tokens = prompt_tokens - watched.prompt_tokens - watched.output_tokens
            model.returned(
                progress,
                arrived - watched.ended,
                max(0, new_tokens),
                # Not all of the last output comes back: templates leave out what models thought.
                cut=prompt_tokens < watched.prompt_tokens,
            )
        model.step(progress, tool, output_tokens)
        watched.ended = ended
        watched.prompt_tokens, watched.output_tokens = prompt_tokens, output_tokens

    def closed(self, session: str) -> None:
        """No further step of it will come."""
        watched = self._watched.pop(session, None)
        if watched is not None and not watched.left_out:
            self.forecasts.of(watched.agent_type).ended(watched.progress)

    def of(self, session: str, now: int) -> dict[str, Any] | None:
        """What is foreseen of a session that is away; None where nothing is. Seconds from now."""
        watched = self._watched.get(session)
        if watched is None or watched.left_out or watched.ended is None:
            return None
        model, progress = self.forecasts.peek(watched.agent_type), watched.progress
        if model is None:
            return None
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
            "p_reuse": model.p_reuse(progress, watched.prompt_tokens + watched.output_tokens),
            "tokens_left": {
                name: {"new": work.new_tokens, "output": work.output_tokens}
                for name, p in (("p50", 0.5), ("p95", 0.95))
                for work in (model.work_left(progress, p),)
            },
            "output_tokens": model.output_tokens(progress).typical,
            "new_tokens": model.new_tokens(progress).typical,
        }

    def _may_learn(self, tenant: str, now: int) -> bool:
        second = now // SECOND
        if second != self._second:
            self._share = LEARNED_PER_S // max(1, len(self._learned))
            self._second, self._learned = second, {}
        count = self._learned[tenant] = self._learned.get(tenant, 0) + 1
        if count <= self._share:
            return True
        self.num_left_out += 1
        return False
