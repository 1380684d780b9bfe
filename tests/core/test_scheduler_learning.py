"""What the scheduler learns from what it is told, and what it charges."""

import pytest
from tests.core.steps import SECOND, step

from saga.core import events as ev
from saga.testing import FakeCluster


def test_return_times_are_learned_by_tool() -> None:
    cluster = FakeCluster("vllm")
    step(cluster, "s", 1_000, tool="shell")
    cluster.advance(3 * SECOND)
    step(cluster, "s", 1_000, tool=None)
    cluster.advance(2 * SECOND)
    cluster.tell(ev.ToolStarted(at=cluster.now, session="s", tool="search"))
    cluster.advance(2 * SECOND)
    cluster.tell(ev.ToolFinished(at=cluster.now, session="s"))
    step(cluster, "s", 1_000)
    times = cluster.scheduler.view.return_times
    assert times.quantile("shell", 0.5) == 3 * SECOND
    assert times.quantile("search", 0.5) == 4 * SECOND, "from the end of the step"
    assert times.quantile(None, 0.5) is None
    cluster.advance(SECOND)
    cluster.ask("s")
    cluster.advance(SECOND)
    cluster.ask("s")  # overlaps the other one: no return
    assert times.quantile(None, 1.0) == SECOND


def test_tenants_of_a_gateway_learn_nothing_from_each_other() -> None:
    cluster = FakeCluster("vllm")
    for tenant, seconds in (("red", 3), ("blue", 9)):
        name = f"{tenant}/s"
        cluster.tell(
            ev.WorkflowSubmitted(
                at=cluster.now, workflow=name, tenant=tenant, agent_type=f"{tenant}/agent"
            )
        )
        cluster.tell(ev.SessionOpened(at=cluster.now, session=name, workflow=name))
        step(cluster, name, 1_000, tool="shell")
        cluster.advance(seconds * SECOND)
        step(cluster, name, 1_000)
    times = cluster.scheduler.view.return_times
    assert times.quantile("shell", 1.0, owner="red") == 3 * SECOND
    assert times.quantile("shell", 1.0, owner="blue") == 9 * SECOND
    assert times.quantile("shell", 1.0) is None


def test_the_ideal_time_of_finished_workflows_is_learned() -> None:
    """GPU time plus return times: the TCT without any queueing."""
    cluster = FakeCluster("vllm", auto_start=False)
    cluster.finish(cluster.ask("s", 1_000), 10)
    cluster.advance(3 * SECOND)
    request = cluster.ask("s", 1_000)
    cluster.advance(7 * SECOND)  # waits on its engine: that is no ideal
    cluster.finish(request, 20)
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="s"))
    ideal_us = cluster.scheduler.view.graphs["agent"].ideal_us.value(0)
    assert ideal_us == 2 * 1_000 * 250 + 30 * 2_500 + 3 * SECOND


def test_new_tokens_of_a_step_are_learned() -> None:
    """E[obs_tokens(u)] of Eq. 5: what the prompt adds to prompt and output of the step before."""
    cluster = FakeCluster("vllm")
    cluster.finish(cluster.ask("s", 1_000), 100, tool="shell")
    cluster.finish(cluster.ask("s", 1_500), 100, tool="shell")
    graph = cluster.scheduler.view.graphs["agent"]
    assert graph.nodes["shell"].observation_tokens.value(-1) == 400
    assert graph.new_tokens.value(-1) == 400
    assert graph.output_tokens.value(-1) == 100


def test_expected_output_is_the_mean_of_the_agent_type_unless_told() -> None:
    cluster = FakeCluster("vllm")
    cluster.finish(cluster.ask("s"), 300)
    cluster.finish(cluster.ask("s"), 500)
    request = cluster.scheduler.state.requests[cluster.ask("s")]
    assert request.expected_output_tokens == 400


def test_a_session_before_its_first_step_has_its_whole_way_to_go() -> None:
    """It has called no tool, like one after its last step, which has nothing left to do."""
    cluster = FakeCluster("vllm")
    for number in range(30):
        for tool in ("shell", "shell", None):
            step(cluster, f"s{number}", 1_000, tool=tool)
        cluster.tell(ev.WorkflowDone(at=cluster.now, workflow=f"s{number}"))
    cluster.ask("fresh")
    step(cluster, "ending", 1_000)
    workflows = cluster.scheduler.state.workflows
    assert workflows["ending"].remaining.steps == 0
    assert workflows["fresh"].remaining.steps == pytest.approx(3.0, abs=1e-6)


def test_the_first_request_of_a_tenant_is_charged_by_a_share_that_counts_its_work() -> None:
    cluster = FakeCluster("saga_paper", auto_start=False)
    cluster.ask("a", tenant="old", mean_steps=10)
    cluster.ask("b", tenant="new", mean_steps=10)
    old, new = (cluster.scheduler.state.tenants[name] for name in ("old", "new"))
    assert old.share == new.share > 0.01
    lanes = cluster.scheduler.queues["engine-0"].lanes
    for tenant in (old, new):
        assert lanes[tenant.id].virtual_time == pytest.approx(tenant.service / tenant.share)


def test_charges_follow_what_a_request_really_took() -> None:
    cluster = FakeCluster("vllm", auto_start=False)
    request = cluster.ask("s", 1_000)
    tenant = cluster.scheduler.state.tenants["tenant"]
    assert tenant.service == 1_000 * 250 + 200 * 2_500, "by forecast"
    cluster.start(request, cached_tokens=400)
    cluster.finish(request, 10)
    assert tenant.service == 600 * 250 + 10 * 2_500
    workflow = cluster.scheduler.state.workflows["s"]
    assert workflow.service_us == tenant.service
    second = cluster.ask("s", 2_000)
    cluster.tell(
        ev.RequestFinished(at=cluster.now, request=second, output_tokens=1, cached_tokens=1_010)
    )
    assert workflow.service_us == 600 * 250 + 10 * 2_500 + 990 * 250 + 2_500


def test_a_forecast_counts_on_kv_only_where_the_request_goes() -> None:
    """Output forecast after one step: the 100 tokens that were seen."""
    for routing, new_tokens in (("session_affinity", 400), ("round_robin", 1_500)):
        cluster = FakeCluster(f"vllm+routing={routing}", engines=2, auto_start=False)
        cluster.finish(cluster.ask("s", 1_000), 100)
        request = cluster.scheduler.state.requests[cluster.ask("s", 1_500)]
        assert request.charged == new_tokens * 250 + 100 * 2_500


def test_a_working_set_is_what_was_expected_until_it_is_known() -> None:
    cluster = FakeCluster("vllm")
    engine = cluster.scheduler.state.engines["engine-0"]
    request = cluster.ask("s", 1_000)
    assert engine.committed_tokens == 1_000 + 200
    cluster.finish(request, 50)
    assert engine.committed_tokens == 1_050
    cluster.tell(ev.SessionClosed(at=cluster.now, session="s"))
    assert (engine.committed_tokens, engine.num_sessions) == (0, 0)
