from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class Justitia:
    """Which request? One of the workflow that would end first if all shared KV memory equally.

    Yang et al., Justitia: Fair and Efficient Scheduling of Task-parallel LLM Agents with Selective
    Pampering, 2025. A call with p prompt and d output tokens costs ``p d + d^2 / 2`` of KV memory
    over decode steps, a workflow the sum over its predicted calls. Workflows go strictly by ``F =
    V(arrival) + cost`` with ``dV/dt = memory / unfinished workflows``. Costs are predicted once, on
    arrival, from the graph of the agent type and the first prompt; sub-agents are not foreseen.
    """

    step_ms: float = 40.0
    """Duration of a decode step, which makes costs comparable to V."""

    def __post_init__(self) -> None:
        if not self.step_ms > 0:
            raise ValueError("step_ms must be above 0")

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.session.workflow.score

    def first_score(self, request: RequestView, cluster: ClusterView) -> float:
        return cluster.virtual_time + self._cost(request, cluster) * self.step_ms / 1e3

    def next_score(self, request: RequestView, output_tokens: int, cluster: ClusterView) -> float:
        return request.session.workflow.score

    def _cost(self, request: RequestView, cluster: ClusterView) -> float:
        """In tokens times decode steps, of a chain of calls that all grow by the same."""
        work = cluster.graphs.remaining(request.session)
        calls = max(1.0, work.steps)
        output = work.output_tokens / calls
        grown = (work.new_tokens / calls + output) * calls * (calls - 1.0) / 2.0
        prompts = calls * request.prompt_tokens + grown
        return prompts * output + calls * output**2 / 2.0
