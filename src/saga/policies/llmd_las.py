from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView, WorkflowView


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmdLas:
    """Which request? One of the workflow with little recent service and a long wait.

    llm-d's program-aware fairness: a call adds its prompt plus ``output_weight`` times its output
    tokens to its workflow's service, which halves every ``half_life_s``. At every turn the largest
    ``service_weight * (1 - service) + (1 - service_weight) * wait`` goes, of the first request of
    each workflow, both normalised to 0..1 over those that wait.
    """

    half_life_s: float = 60.0
    output_weight: float = 2.0
    service_weight: float = 0.8
    uncached_only: bool = False
    """Whether prompt tokens found in the cache cost nothing; llm-d counts all."""

    def __post_init__(self) -> None:
        if not (self.half_life_s > 0 and self.output_weight >= 0):
            raise ValueError("half_life_s must be above 0, output_weight not below 0")
        if not 0 <= self.service_weight <= 1:
            raise ValueError(f"service_weight is {self.service_weight}, allowed is 0 to 1")

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.arrived

    def choose(self, heads: Sequence[RequestView], cluster: ClusterView) -> RequestView:
        services = normal([self._service(head.session.workflow, cluster.now) for head in heads])
        waits = normal([cluster.now - head.arrived for head in heads])
        weight = self.service_weight
        merits = [
            weight * (1.0 - service) + (1.0 - weight) * wait
            for service, wait in zip(services, waits, strict=True)
        ]
        return heads[merits.index(max(merits))]

    def first_score(self, request: RequestView, cluster: ClusterView) -> float:
        return 0.0

    def next_score(self, request: RequestView, output_tokens: int, cluster: ClusterView) -> float:
        """The workflow's service."""
        prompt = request.prompt_tokens - (request.cached_tokens if self.uncached_only else 0)
        before = self._service(request.session.workflow, cluster.now)
        return before + prompt + self.output_weight * output_tokens

    def _service(self, workflow: WorkflowView, now: int) -> float:
        age_s = (now - workflow.score_at) / 1e6
        return float(workflow.score * 0.5 ** (age_s / self.half_life_s))


def normal(values: Sequence[float]) -> list[float]:
    """Moved and scaled to 0..1; all 0 if they are equal."""
    least, most = min(values), max(values)
    return [(value - least) / (most - least) if most > least else 0.0 for value in values]
