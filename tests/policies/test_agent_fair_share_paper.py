"""Eq. 8: AFS_i = sum of work_remain / (deadline - now); Eq. 9: shares in proportion to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.factory import SECOND, Cluster, engine, request, session, workflow

from saga.core.graph import GraphStore, RemainingWork
from saga.core.model import Request, Tenant, Workflow
from saga.policies.agent_fair_share_paper import AgentFairSharePaper
from saga.testing import FakeCluster

AFS = AgentFairSharePaper()
WORK = RemainingWork(steps=10, new_tokens=4_000, output_tokens=600)
"""On an engine of 2 us per prefilled and 20 us per generated token: 20,000 us of GPU time."""


def urgency(of: Workflow, now: int, policy: AgentFairSharePaper = AFS) -> float:
    return policy.urgency(of, Cluster(engines=[engine()], now=now))


def test_work_over_the_time_left_to_the_deadline() -> None:
    due = workflow(deadline=12 * SECOND, remaining=WORK)
    assert urgency(due, now=2 * SECOND) == pytest.approx(20_000 / 10_000_000)
    assert urgency(due, now=7 * SECOND) == pytest.approx(20_000 / 5_000_000)


def test_an_overdue_workflow_is_as_urgent_as_one_due_in_a_second() -> None:
    due = workflow(deadline=12 * SECOND, remaining=WORK)
    most = pytest.approx(20_000 / 1_000_000)
    assert urgency(due, now=11 * SECOND) == most
    assert urgency(due, now=12 * SECOND) == most
    assert urgency(due, now=3_600 * SECOND) == most
    assert urgency(due, 12 * SECOND, AgentFairSharePaper(min_slack_s=4.0)) == pytest.approx(0.005)


def test_the_deadline_is_submission_plus_one_and_a_half_expected_tct() -> None:
    graphs = GraphStore()
    for ideal_us in (30 * SECOND, 50 * SECOND):  # mean 40 s: due after 60 s
        graphs.learn("agent").ideal_us.add(ideal_us)
    cluster = Cluster(engines=[engine()], now=25 * SECOND, graphs=graphs)
    undeclared = workflow(submitted=15 * SECOND, remaining=WORK)
    assert AFS.urgency(undeclared, cluster) == pytest.approx(20_000 / 50_000_000)
    generous = AgentFairSharePaper(slo_factor=3.0)  # due after 120 s
    assert generous.urgency(undeclared, cluster) == pytest.approx(20_000 / 110_000_000)


def test_a_type_that_never_finished_is_expected_to_take_its_work() -> None:
    heavy = RemainingWork(steps=10, new_tokens=10**7, output_tokens=0)  # 20 s, due after 30 s
    assert urgency(workflow(remaining=heavy), now=10 * SECOND) == pytest.approx(1.0)


def test_without_engines_a_usual_cost_stands_in() -> None:
    due = workflow(deadline=12 * SECOND, remaining=WORK)
    at_250_and_2500_us = (4_000 * 250 + 600 * 2_500) / 10_000_000
    assert AFS.urgency(due, Cluster(now=2 * SECOND)) == pytest.approx(at_250_and_2500_us)


def test_the_share_is_proportional_to_urgency_and_weight() -> None:
    one, double = Tenant(id="one"), Tenant(id="double", weight=2.0)
    assert AFS.share(one, 0.3) == pytest.approx(3 * AFS.share(one, 0.1))
    assert AFS.share(double, 0.1) == pytest.approx(2 * AFS.share(one, 0.1))


def test_the_share_is_above_0_even_with_nothing_to_do() -> None:
    assert AFS.share(Tenant(id="idle"), 0.0) > 0.0


# ---- preemption


def of_tenant(share: float, name: str = "request", arrived: int = 0) -> Request:
    owner = Tenant(id=f"tenant of {name}", share=share)
    return request(name, of=session(of=workflow(tenant=owner)), arrived=arrived)


@pytest.mark.parametrize(("waited_us", "preempts"), [(500_000, False), (500_001, True)])
def test_who_waited_for_longer_than_500_ms_may_preempt(waited_us: int, preempts: bool) -> None:
    running = of_tenant(1.0, "running")
    cluster = Cluster(engines=[engine()], now=10 * SECOND)
    head = of_tenant(5.0, "head", arrived=10 * SECOND - waited_us)
    assert (AFS.preempt(head, [running], cluster) is running) is preempts


@pytest.mark.parametrize(("share", "preempts"), [(1.0, False), (2.0, False), (2.01, True)])
def test_and_only_who_has_more_than_twice_the_priority(share: float, preempts: bool) -> None:
    running = of_tenant(1.0, "running")
    cluster = Cluster(engines=[engine()], now=10 * SECOND)
    assert (AFS.preempt(of_tenant(share, "head"), [running], cluster) is running) is preempts


def test_the_one_of_the_lowest_priority_gives_way() -> None:
    running = [of_tenant(3.0, "a"), of_tenant(0.5, "b"), of_tenant(1.0, "c")]
    cluster = Cluster(engines=[engine()], now=10 * SECOND)
    assert AFS.preempt(of_tenant(5.0, "head"), running, cluster) is running[1]
    assert AFS.preempt(of_tenant(5.0, "head"), [], cluster) is None


# ---- in the scheduler


def two_tenants(policy: str) -> FakeCluster:
    """One engine of one seat; ``slow`` has one workflow, ``many`` has three just like it."""
    cluster = FakeCluster(f"vllm+max_waiting_per_engine=1+fairness={policy}", max_num_seqs=1)
    cluster.ask("first", tenant="other")
    for number in range(3):
        cluster.ask(f"many-{number}", tenant="many", mean_steps=10)
    cluster.ask("slow", tenant="slow", mean_steps=10)
    return cluster


def test_a_tenants_share_follows_from_the_sum_over_its_workflows() -> None:
    tenants = two_tenants("agent_fair_share_paper").scheduler.state.tenants
    assert tenants["slow"].share > 0
    assert tenants["many"].share == pytest.approx(3 * tenants["slow"].share)


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_law_urgency_never_falls_while_time_passes(deadline: int, one: int, two: int) -> None:
    due = workflow(deadline=deadline, remaining=WORK)
    earlier, later = sorted((one, two))
    assert 0 < urgency(due, earlier) <= urgency(due, later)
