"""What an ordering policy is asked beyond keys: to choose at each turn, to score workflows."""

from __future__ import annotations

from saga.core.model import Request
from saga.core.policy import ChoosingPolicy, OrderingPolicy, ScoringPolicy
from saga.core.queues import FairQueue
from saga.core.view import View


class Turns:
    """Whose turn it is, and the scores of workflows."""

    def __init__(self, ordering: OrderingPolicy, view: View) -> None:
        self._choosing = ordering if isinstance(ordering, ChoosingPolicy) else None
        self._scoring = ordering if isinstance(ordering, ScoringPolicy) else None
        self._view = view

    def head(self, queue: FairQueue) -> Request:
        """Whose turn it is in a queue in which somebody waits."""
        if self._choosing is None:
            head = queue.peek()
            assert head is not None
            return head
        chosen = self._choosing.choose(queue.heads(), self._view)
        return queue.members[chosen.id][1]

    def arrive(self, request: Request) -> None:
        """Call before the request is queued."""
        workflow = request.session.workflow
        if self._scoring is not None and workflow.score_at < 0:
            workflow.score = self._scoring.first_score(request, self._view)
            workflow.score_at = self._view.now

    def finish(self, request: Request, output_tokens: int) -> None:
        """It has finished."""
        if self._scoring is not None:
            workflow = request.session.workflow
            workflow.score = self._scoring.next_score(request, output_tokens, self._view)
            workflow.score_at = self._view.now
