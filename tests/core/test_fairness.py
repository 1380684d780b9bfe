"""Laws of virtual time: start-time fair queueing, credit, idleness, and what a refresh costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_queues import make_request

from saga.config import load_preset
from saga.core import events as ev
from saga.core.fairness import REFRESH_PER_EVENT, ServiceLedger
from saga.core.model import ClusterState, Request, Tenant, Workflow
from saga.core.policy import ClusterView, RequestView, TenantView, WorkflowView
from saga.core.queues import FairQueue
from saga.core.view import View
from saga.testing import FakeCluster

EPOCH_US = 100_000
COST = st.integers(1, 1_000).map(float)
SHARE = st.sampled_from([0.25, 1.0, 2.0, 7.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """Which tenant? The one furthest behind its weight. Notes down whom it was asked about."""

    asked: list[str] = field(default_factory=list)

    def urgency(self, workflow: WorkflowView, cluster: ClusterView) -> float:
        self.asked.append(workflow.id)
        return 1.0 + cluster.now % 7

    def share(self, tenant: TenantView, urgency: float) -> float:
        return tenant.weight

    def preempt(
        self, head: RequestView, running: Sequence[RequestView], cluster: ClusterView
    ) -> RequestView | None:
        return None


class Race:
    """Two tenants that always have something queued, served one request after another."""

    def __init__(self, shares: tuple[float, float]) -> None:
        self.ledger = ServiceLedger(None, EPOCH_US)
        self.queue = FairQueue(fair=True)
        self.tenants = [Tenant(id="a", share=shares[0]), Tenant(id="b", share=shares[1])]
        self.normal = [0.0, 0.0]
        """Service over share since the race began."""
        self.largest = [0.0, 0.0]
        """Of what was charged for one request, over share."""
        self.number = 0

    def join(self, who: int) -> None:
        self.number += 1
        request = make_request(f"r{self.number}", self.tenants[who])
        self.ledger.queued(self.tenants[who])
        self.queue.push(request, 0.0)

    def serve(self, forecast: float, real: float) -> int:
        request = self.queue.pop()
        tenant = request.session.workflow.tenant
        who = self.tenants.index(tenant)
        self.ledger.charge(request, forecast)
        self.ledger.settle(request, real)
        self.normal[who] += real / tenant.share
        self.largest[who] = max(self.largest[who], max(forecast, real) / tenant.share)
        return who

    @property
    def deviation(self) -> float:
        return self.normal[0] - self.normal[1]

    @property
    def bound(self) -> float:
        return sum(self.largest) * (1 + 1e-9)


COSTS = st.lists(st.tuples(COST, COST), min_size=1, max_size=60)


@given(SHARE, SHARE, COSTS)
def test_law_11_fair_share_between_backlogged_tenants(
    first: float, second: float, costs: list[tuple[float, float]]
) -> None:
    """Over any interval |W_i / s_i - W_j / s_j| <= max charge_i / s_i + max charge_j / s_j."""
    race = Race((first, second))
    race.join(0)
    race.join(1)
    deviations = [0.0]
    for cost, _ in costs:
        race.join(race.serve(cost, cost))
        deviations.append(race.deviation)
    assert max(deviations) - min(deviations) <= race.bound


@given(SHARE, SHARE, COSTS)
def test_wrong_forecasts_do_not_add_up(
    first: float, second: float, costs: list[tuple[float, float]]
) -> None:
    """From the common start the bound holds for what requests really took, too."""
    race = Race((first, second))
    race.join(0)
    race.join(1)
    for forecast, real in costs:
        race.join(race.serve(forecast, real))
        assert abs(race.deviation) <= race.bound
        for tenant in race.tenants:
            assert tenant.virtual_time * tenant.share == pytest.approx(
                tenant.service_us + tenant.credit_us
            )


@given(SHARE, SHARE, COSTS, COSTS)
def test_idleness_is_not_saved_up(
    first: float,
    second: float,
    alone: list[tuple[float, float]],
    together: list[tuple[float, float]],
) -> None:
    """Whoever comes back from idleness gets its share from then on, and nothing for before."""
    race = Race((first, second))
    race.join(0)
    for cost, _ in alone:
        race.join(race.serve(cost, cost))
    race.normal = [0.0, 0.0]
    race.join(1)
    assert race.tenants[1].virtual_time == race.ledger.virtual_time
    for cost, _ in together:
        race.join(race.serve(cost, cost))
        assert abs(race.deviation) <= race.bound


def test_shares_by_hand() -> None:
    race = Race((3.0, 1.0))
    race.join(0)
    race.join(1)
    served = []
    for _ in range(40):
        served.append(race.serve(10.0, 10.0))
        race.join(served[-1])
    assert served.count(0) == 30


def test_a_charge_too_high_is_credit() -> None:
    ledger, tenant = ServiceLedger(None, EPOCH_US), Tenant(id="t", share=2.0)
    first, second, third = (make_request(name, tenant) for name in "abc")
    for _ in range(3):
        ledger.queued(tenant)
    ledger.charge(first, 100.0)
    assert (tenant.virtual_time, tenant.service_us, tenant.num_queued) == (50.0, 100.0, 2)
    ledger.settle(first, 30.0)
    assert (tenant.virtual_time, tenant.service_us, tenant.credit_us) == (50.0, 30.0, 70.0)
    ledger.charge(second, 60.0)
    assert (tenant.virtual_time, tenant.service_us, tenant.credit_us) == (50.0, 90.0, 10.0)
    ledger.settle(second, 64.0)
    assert (tenant.virtual_time, tenant.service_us, tenant.credit_us) == (50.0, 94.0, 6.0)
    ledger.charge(third, 16.0)
    assert (tenant.virtual_time, tenant.service_us, tenant.credit_us) == (55.0, 110.0, 0.0)
    assert tenant.num_queued == 0
    assert ledger.virtual_time == 50.0, "where the last one was served"


def test_a_request_queued_again_costs_nothing() -> None:
    ledger, tenant = ServiceLedger(None, EPOCH_US), Tenant(id="t")
    request = make_request("r", tenant)
    ledger.queued(tenant)
    ledger.charge(request, 100.0)
    ledger.settle(request, 0.0)
    ledger.queued(tenant)
    assert (tenant.service_us, tenant.credit_us, tenant.num_queued) == (0.0, 100.0, 1)
    ledger.charge(request, 100.0)
    assert (tenant.service_us, tenant.virtual_time) == (100.0, 100.0)


@given(st.lists(st.tuples(st.sampled_from("qucs"), st.integers(0, 2), COST), max_size=80))
def test_virtual_times_never_decrease(turns: list[tuple[str, int, float]]) -> None:
    ledger = ServiceLedger(None, EPOCH_US)
    tenants = [Tenant(id=name, share=share) for name, share in (("a", 0.5), ("b", 1), ("c", 3))]
    running: list[Request] = []
    for what, who, cost in turns:
        before = [ledger.virtual_time, *(tenant.virtual_time for tenant in tenants)]
        tenant = tenants[who]
        if what == "q":
            ledger.queued(tenant)
            assert tenant.num_queued > 1 or tenant.virtual_time >= ledger.virtual_time
        elif what == "u" and tenant.num_queued:
            ledger.unqueued(tenant)
        elif what == "c" and tenant.num_queued:
            running.append(make_request("r", tenant))
            ledger.charge(running[-1], cost)
        elif what == "s" and running:
            ledger.settle(running.pop(), cost)
        after = [ledger.virtual_time, *(tenant.virtual_time for tenant in tenants)]
        assert all(new >= old for new, old in zip(after, before, strict=True))
        assert all(tenant.credit_us >= 0 and tenant.num_queued >= 0 for tenant in tenants)


class Watch:
    """A ledger whose policy notes down whom it was asked about, and its clock."""

    def __init__(self, num_workflows: int) -> None:
        self.policy = Weighted()
        self.state = ClusterState()
        self.view = View(self.state, {})
        self.ledger = ServiceLedger(self.policy, EPOCH_US)
        self.tenants = [Tenant(id="a", weight=2.0), Tenant(id="b", weight=0.5)]
        self.workflows = [
            Workflow(
                id=f"w{number}",
                tenant=self.tenants[number % 2],
                agent_type="agent",
                submitted=0,
            )
            for number in range(num_workflows)
        ]
        for workflow in self.workflows:
            self.ledger.enter(workflow, self.view)

    def asked(self) -> list[str]:
        """Since the last time."""
        names = list(self.policy.asked)
        self.policy.asked.clear()
        return names

    def refresh(self, now: int) -> list[str]:
        self.state.now = now
        self.asked()
        self.ledger.refresh(self.view)
        return self.asked()


def test_everybody_is_asked_about_on_entering() -> None:
    watch = Watch(3)
    assert watch.asked() == ["w0", "w1", "w2"]
    assert [tenant.share for tenant in watch.tenants] == [2.0, 0.5]
    assert [tenant.urgency for tenant in watch.tenants] == [2.0, 1.0]
    assert watch.refresh(EPOCH_US - 1) == [], "not before an epoch has passed"


def test_a_refresh_asks_about_a_few_the_stalest_first() -> None:
    watch = Watch(3 * REFRESH_PER_EVENT + 1)
    asked = [watch.refresh(EPOCH_US + number) for number in range(4)]
    assert [len(names) for names in asked] == [REFRESH_PER_EVENT] * 3 + [1]
    assert [name for names in asked for name in names] == [
        workflow.id for workflow in watch.workflows
    ]
    assert watch.refresh(EPOCH_US + 10) == [], "all are fresh"
    assert watch.refresh(2 * EPOCH_US)[0] == "w0"


def test_a_workflow_that_left_is_not_asked_about() -> None:
    watch = Watch(4)
    watch.ledger.leave(watch.workflows[0])
    watch.ledger.leave(watch.workflows[2])
    asked = [name for number in range(4) for name in watch.refresh(EPOCH_US + number)]
    assert asked == ["w1", "w3"]
    assert watch.tenants[0].urgency == 0.0


@given(st.lists(st.tuples(st.sampled_from(["leave", "add", "ask", "wait"]), st.integers(0, 9))))
def test_a_tenant_is_as_urgent_as_its_workflows(turns: list[tuple[str, int]]) -> None:
    watch = Watch(4)
    here = list(watch.workflows)
    for what, number in turns:
        if what == "leave" and here:
            watch.ledger.leave(here.pop(number % len(here)))
        elif what == "add" and here:
            watch.ledger.reassess(here[number % len(here)], watch.view)
        elif what == "wait":
            watch.state.now += 1 + number * EPOCH_US // 5
        else:
            watch.ledger.refresh(watch.view)
        for tenant in watch.tenants:
            own = [workflow.urgency for workflow in here if workflow.tenant is tenant]
            assert tenant.urgency == pytest.approx(sum(own))


def test_without_a_policy_it_only_keeps_count() -> None:
    ledger = ServiceLedger(None, EPOCH_US)
    workflow = make_request("r", Tenant(id="t")).session.workflow
    view = View(ClusterState(), {})
    ledger.enter(workflow, view)
    ledger.refresh(view)
    ledger.leave(workflow)
    assert (workflow.tenant.share, workflow.tenant.urgency) == (1.0, 0.0)


@given(
    st.lists(st.tuples(st.integers(1, 3_000), st.integers(0, 500)), min_size=20, max_size=40),
    st.sampled_from([1.0, 3.0]),
)
def test_law_11_in_the_scheduler(steps: list[tuple[int, int]], weight: float) -> None:
    """Two tenants queue for one place on one engine; each always has three requests waiting."""
    policies = replace(load_preset("vllm+max_waiting_per_engine=1").policies, fairness=Weighted())
    cluster = FakeCluster(policies, max_num_seqs=1, kv_capacity_tokens=10**6, check=False)
    weights = {"light": 1.0, "heavy": weight}
    for tenant, its_weight in weights.items():
        for number in range(4):
            name = f"{tenant}-{number}"
            cluster.tell(
                ev.WorkflowSubmitted(at=0, workflow=name, tenant=tenant, weight=its_weight)
            )
            cluster.ask(name, 1_000)
    state = cluster.scheduler.state
    largest = dict.fromkeys(weights, 0.0)
    """Of what was charged for one request, by forecast or in the end."""
    for prompt_tokens, output_tokens in steps:
        (running,) = cluster.engines["engine-0"].running
        request = state.requests[running]
        name, session = request.session.workflow.tenant.id, request.session.id
        forecast = request.charged_us
        cluster.finish(running, output_tokens)
        largest[name] = max(largest[name], forecast, request.charged_us)
        cluster.ask(session, prompt_tokens)
        (now_running,) = state.engines["engine-0"].requests.values()
        name = now_running.session.workflow.tenant.id
        largest[name] = max(largest[name], now_running.charged_us)
        normal = {name: state.tenants[name].service_us / weights[name] for name in weights}
        bound = sum(largest[name] / weights[name] for name in weights)
        assert abs(normal["light"] - normal["heavy"]) <= bound * (1 + 1e-9)


def test_a_tenant_that_leaves_ahead_comes_back_with_its_debt() -> None:
    """Otherwise one-workflow-at-a-time clients would start anew at every workflow."""
    cluster = FakeCluster("saga_paper", engines=1, max_num_seqs=1)
    request = cluster.ask("greedy", 1_000, tenant="greedy")
    cluster.finish(request, output_tokens=50_000)
    ahead = cluster.scheduler.state.tenants["greedy"].virtual_time
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="greedy"))
    assert "greedy" not in cluster.scheduler.state.tenants
    cluster.ask("again", 1_000, tenant="greedy")
    assert cluster.scheduler.state.tenants["greedy"].virtual_time >= ahead > 0
    assert cluster.scheduler.state.tenants["greedy"].virtual_time > (
        cluster.scheduler.ledger.virtual_time - 1e-9
    )


def test_debts_that_are_used_up_are_forgotten() -> None:
    ledger = ServiceLedger(None, 100_000)
    for number in range(100):
        ledger.part(Tenant(id=f"t{number}", virtual_time=float(number)))
    ledger.virtual_time = 90.0
    ledger.part(Tenant(id="last", virtual_time=95.0))
    back, forgotten = Tenant(id="t97"), Tenant(id="t50")
    ledger.join(back)
    ledger.join(forgotten)
    assert (back.virtual_time, forgotten.virtual_time) == (97.0, 90.0)
    ledger.join(back)
    assert back.virtual_time == 90.0, "a debt is told once"
