"""What is charged to whom: fair shares between tenants that wait, debts, and a refresh's cost."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_queues import limit, make_request

from saga.config import load_preset
from saga.core import events as ev
from saga.core.fairness import REFRESH_PER_EVENT, ServiceLedger, WeightedShares
from saga.core.model import ClusterState, Engine, Request, Tenant, Workflow
from saga.core.policy import ClusterView, WorkflowView
from saga.core.queues import FairQueue, Lane
from saga.core.view import View
from saga.testing import FakeCluster

EPOCH_US = 100_000
COST = st.integers(1, 1_000)
SHARE = st.sampled_from([0.25, 1.0, 2.0, 7.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted(WeightedShares):
    """Which tenant? The one furthest behind its weight. Notes down whom it was asked about."""

    asked: list[str] = field(default_factory=list)

    def urgency(self, workflow: WorkflowView, cluster: ClusterView) -> float:
        self.asked.append(workflow.id)
        return 1.0 + cluster.now % 7


UNIT = Engine(
    id="e",
    kv_capacity_tokens=1_000,
    max_num_seqs=1,
    prefill_us_per_token=1.0,
    decode_us_per_token=0.0,
)
"""Here a request costs its uncached tokens."""


def finish(ledger: ServiceLedger, request: Request, cost: int, queue: FairQueue) -> None:
    request.prompt_tokens = cost
    ledger.finish(request, 0, UNIT, queue)


class Race:
    """Two tenants that always have something queued, served one request after another."""

    def __init__(self, shares: tuple[float, float]) -> None:
        self.ledger = ServiceLedger(None, EPOCH_US)
        self.queue = FairQueue(limit(0.0))
        self.tenants = [Tenant(id="a", share=shares[0]), Tenant(id="b", share=shares[1])]
        self.normal = [0.0, 0.0]
        """Service over share since the race began."""
        self.largest = [0.0, 0.0]
        """Of what was charged for one request, over share."""
        self.number = 0
        for who in (0, 1, 0, 1):
            self.join(who)

    def join(self, who: int) -> None:
        self.number += 1
        request = make_request(f"r{self.number}", self.tenants[who])
        self.tenants[who].num_queued += 1
        self.queue.push(request, 0.0)

    def serve(self, forecast: int, real: int) -> int:
        request = self.queue.peek()
        assert request is not None
        tenant = request.session.workflow.tenant
        who = self.tenants.index(tenant)
        self.ledger.charge(request, forecast, UNIT, self.queue)
        finish(self.ledger, request, real, self.queue)
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
    first: float, second: float, costs: list[tuple[int, int]]
) -> None:
    """Over any interval |W_i / s_i - W_j / s_j| <= max charge_i / s_i + max charge_j / s_j."""
    race = Race((first, second))
    deviations = [0.0]
    for cost, _ in costs:
        race.join(race.serve(cost, cost))
        deviations.append(race.deviation)
    assert max(deviations) - min(deviations) <= race.bound
    assert race.queue.deviation <= 1.0


@given(SHARE, SHARE, COSTS)
def test_wrong_forecasts_do_not_add_up(
    first: float, second: float, costs: list[tuple[int, int]]
) -> None:
    """From the common start the bound holds for what requests really took, too."""
    race = Race((first, second))
    for forecast, real in costs:
        race.join(race.serve(forecast, real))
        assert abs(race.deviation) <= race.bound
        for tenant in race.tenants:
            lane = race.queue.lanes[tenant.id]
            assert (lane.virtual_time - lane.credit) * tenant.share == pytest.approx(tenant.service)


def test_shares_by_hand() -> None:
    race = Race((3.0, 1.0))
    served = []
    for _ in range(40):
        served.append(race.serve(10, 10))
        race.join(served[-1])
    assert served.count(0) == 30


def test_a_request_queued_again_costs_nothing() -> None:
    ledger, tenant, queue = ServiceLedger(None, EPOCH_US), Tenant(id="t"), FairQueue(limit(0.0))
    queue.push(make_request("other", tenant), 0.0)
    request = make_request("r", tenant)
    tenant.num_queued += 1
    queue.push(request, 0.0)
    ledger.charge(request, 100, UNIT, queue)
    assert (tenant.service, tenant.num_queued) == (100.0, 0)
    ledger.settle(request, 0.0, queue)
    assert (tenant.service, queue.lanes["t"].credit) == (0.0, 100.0)
    queue.push(request, 0.0)
    ledger.charge(request, 100, UNIT, queue)
    assert (tenant.service, queue.lanes["t"].virtual_time) == (100.0, 100.0)


class Gate:
    """One tenant before admission, where something else of it waits; its type takes 100."""

    def __init__(self) -> None:
        self.ledger = ServiceLedger(Weighted(), EPOCH_US)
        self.queue = FairQueue(limit(0.0))
        view = View(ClusterState(), {})
        tenant = Tenant(id="t")
        head, other = make_request("head", tenant), make_request("other", tenant)
        for request in (head, other):
            self.queue.push(request, 0.0)
        self.workflow = head.session.workflow
        view.graphs.learn(self.workflow.agent_type).cost_us.add(100.0)
        self.ledger.start(head, view, self.queue)

    @property
    def lane(self) -> Lane:
        return self.queue.lanes["t"]


def test_a_workflow_is_charged_at_its_start_and_more_only_beyond_that() -> None:
    gate = Gate()
    assert gate.lane.virtual_time == 100.0
    gate.workflow.service_us, gate.workflow.kv_us = 90.0, 40.0
    gate.ledger.go_on(gate.workflow, gate.queue)
    assert gate.lane.virtual_time == 100.0
    gate.workflow.kv_us = 130.0
    gate.ledger.go_on(gate.workflow, gate.queue)
    assert gate.lane.virtual_time == 130.0, "the dominant one counts"
    gate.workflow.service_us = 150.0
    gate.ledger.end(gate.workflow, gate.queue)
    assert (gate.lane.virtual_time, gate.lane.num_in_flight) == (150.0, 0)


def test_a_workflow_that_took_less_leaves_credit() -> None:
    gate = Gate()
    gate.workflow.service_us = 30.0
    gate.ledger.end(gate.workflow, gate.queue)
    assert (gate.lane.virtual_time, gate.lane.credit) == (100.0, 70.0)


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
                ranked_at=0,
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
        forecast = request.charged
        cluster.finish(running, output_tokens)
        largest[name] = max(largest[name], forecast, request.charged)
        cluster.ask(session, prompt_tokens)
        (now_running,) = state.engines["engine-0"].requests.values()
        name = now_running.session.workflow.tenant.id
        largest[name] = max(largest[name], now_running.charged)
        normal = {name: state.tenants[name].service / weights[name] for name in weights}
        bound = sum(largest[name] / weights[name] for name in weights)
        assert abs(normal["light"] - normal["heavy"]) <= bound * (1 + 1e-9)


def test_a_tenant_that_leaves_ahead_comes_back_with_its_debt() -> None:
    """Otherwise one-workflow-at-a-time clients would start anew at every workflow."""
    cluster = FakeCluster("saga_paper", engines=1, max_num_seqs=1)
    queue = cluster.scheduler.queues["engine-0"]
    request = cluster.ask("greedy", 1_000, tenant="greedy")
    cluster.ask("other", 1_000, tenant="other")
    cluster.finish(request, output_tokens=50_000)
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="greedy"))
    assert "greedy" not in cluster.scheduler.state.tenants
    ahead = queue.lead("greedy")
    cluster.ask("again", 1_000, tenant="greedy")
    assert queue.lead("greedy") == ahead > 0
