"""Bundles of policies for tests of the core: presets, variations of them, and a hesitant one."""

from dataclasses import dataclass, replace

from saga.config import load_preset
from saga.core.policy import ClusterView, Policies, RequestView, Route

PRESETS = (
    "saga",
    "saga_paper",
    "vllm",
    "vllm_apc_affinity",
    "batch_optimal",
    "oracle",
    "saga+max_waiting_per_engine=1+admission.kappa=0.3",
    "saga+fairness=null+routing.move_kv=false",
    "saga+retention=null+prefetch=null",
    "saga_paper+routing=round_robin",
    "saga_paper+routing=session_affinity+max_waiting_per_engine=1",
    "vllm+fairness=agent_fair_share_paper",
    "vllm+fairness=agent_fair_share_paper+max_waiting_per_engine=1",
    "batch_optimal+stealing=random_stealing+max_waiting_per_engine=1",
    "vtc",
    "dlpm+fairness.quantum=700+admission=working_set",
    "justitia",
    "plas+ordering.first_s=0.1+ordering.beta=2",
    "llmd_las+fairness=agent_fair_share",
    "edf+max_waiting_per_engine=1",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hesitant:
    """Which engine? None at first, then the first one."""

    wait_us: int = 150_000

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        if cluster.now - request.arrived < self.wait_us:
            return None
        return Route(cluster.engines[0], "after a while")


def bundle(name: str) -> Policies:
    """By the name of a preset, or ``hesitant``."""
    if name == "hesitant":
        return replace(load_preset("saga").policies, routing=Hesitant())
    return load_preset(name).policies


BUNDLES = (*PRESETS, "hesitant")
