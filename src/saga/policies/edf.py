from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class Edf:
    """Which request? One of the workflow with the earliest deadline (Liu and Layland 1973).

    Where none is declared, it is the submission plus ``target_s``; where none ever is, this is
    first come first served by workflow.
    """

    target_s: float = 300.0

    def __post_init__(self) -> None:
        if not self.target_s >= 0:
            raise ValueError(f"target_s is {self.target_s}, allowed is 0 or more")

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        workflow = request.session.workflow
        if workflow.deadline is not None:
            return workflow.deadline
        return workflow.submitted + self.target_s * 1e6
