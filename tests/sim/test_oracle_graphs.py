"""Graphs that know the future: their answers are the scripts' own, and they change decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from tests.sim.factory import (
    chat,
    plan_of,
    play,
    random_arrivals,
    random_scripts,
    small_cluster,
    small_workflows,
    step,
    workflow,
)

from saga.core.actions import Retain
from saga.core.events import RequestFinished
from saga.core.graph import RemainingWork
from saga.core.model import Session, Tenant, Workflow
from saga.report.records import Outcome
from saga.sim.oracle_graphs import OracleGraphs
from saga.traces.script import SessionScript, WorkflowScript


def session_of(script: WorkflowScript, index: int = 0, *, done: int, resident: int = 0) -> Session:
    """The scheduler's picture of a session that has done so many steps."""
    played = Workflow(
        id=script.id, tenant=Tenant(id="t"), agent_type="agent", submitted=0, ranked_at=0
    )
    return Session(
        id=script.session_id(index), workflow=played, num_steps=done, resident_tokens=resident
    )


# ---- by hand


def test_what_is_left_is_what_the_script_says() -> None:
    script = workflow("w", chat((100, 10), (20, 5), (30, 7)))
    graphs = OracleGraphs([script])
    left = [graphs.remaining(session_of(script, done=done)) for done in range(4)]
    assert left == [
        RemainingWork(3, 150, 22),
        RemainingWork(2, 50, 12),
        RemainingWork(1, 30, 7),
        RemainingWork(0, 0, 0),
    ]


def test_sub_agents_count_where_they_are_yet_to_start() -> None:
    child = chat((40, 4), (50, 5), parent=0, spawn_step=1)
    grandchild = chat((60, 6), parent=1, spawn_step=0)
    script = workflow("w", chat((100, 10), (20, 5), (30, 7)), child, grandchild)
    graphs = OracleGraphs([script])

    def steps(index: int, done: int) -> float:
        return graphs.remaining(session_of(script, index, done=done)).steps

    assert [steps(0, done) for done in range(4)] == [6, 5, 1, 0]
    assert [steps(1, done) for done in range(3)] == [3, 1, 0]
    assert [steps(2, done) for done in range(2)] == [1, 0]


def test_reuse_is_the_overlap_with_the_prompt_that_will_come() -> None:
    goes_on, cut, anew = step(110, 40, 5), step(60, 40, 5), step(0, 100, 5)
    script = workflow("w", SessionScript(steps=(step(0, 100, 10), goes_on, cut, anew)))
    graphs = OracleGraphs([script])

    def reuse(done: int, resident: int) -> float:
        return graphs.p_reuse(session_of(script, done=done, resident=resident))

    assert reuse(1, 110) == pytest.approx(110 / 150), "as Eq. 5 has it"
    assert reuse(1, 55) == pytest.approx(55 / 95), "what was evicted is not reused"
    assert reuse(1, 0) == 0.0
    assert reuse(2, 155) == pytest.approx(60 / 195), "what the prompt leaves out is not"
    assert reuse(3, 105) == 0.0, "it starts afresh"
    assert reuse(4, 105) == 0.0, "it has ended"


def test_a_session_of_no_script_is_an_error() -> None:
    graphs = OracleGraphs([workflow("w", chat((1, 1)))])
    with pytest.raises(KeyError, match="other/0"):
        graphs.remaining(session_of(workflow("other", chat((1, 1))), done=0))


# ---- laws


@given(small_workflows("w"))
def test_every_step_takes_itself_from_what_is_left_and_hands_its_sub_agents_theirs(
    script: WorkflowScript,
) -> None:
    graphs = OracleGraphs([script])

    def left(index: int, done: int) -> RemainingWork:
        return graphs.remaining(session_of(script, index, done=done))

    for index, session in enumerate(script.sessions):
        for number, played in enumerate(session.steps):
            after = left(index, number + 1)
            after += RemainingWork(1, played.new_tokens, played.output_tokens)
            for child, other in enumerate(script.sessions):
                if (other.parent, other.spawn_step) == (index, number):
                    after += left(child, 0)
            assert left(index, number) == after
        assert left(index, len(session.steps)) == RemainingWork()
    assert left(0, 0).steps == script.num_steps


@given(small_workflows("w"))
def test_reuse_is_certain_to_be_none_after_the_last_step_only(script: WorkflowScript) -> None:
    graphs = OracleGraphs([script])
    for index, session in enumerate(script.sessions):
        for done, following in enumerate(session.steps):
            some = graphs.p_reuse(session_of(script, index, done=done, resident=500))
            assert 0.0 <= some < 1.0
            assert (some > 0.0) == (following.kept_tokens > 0)
        last = session_of(script, index, done=len(session.steps), resident=500)
        assert graphs.p_reuse(last) == 0.0


# ---- runs


def test_in_a_run_only_what_nobody_asks_for_scores_nothing() -> None:
    scripts = random_scripts(7, 40, rich=False)
    last = {script.session_id(0): len(script.sessions[0].steps) - 1 for script in scripts}
    plan, cluster = plan_of(scripts, random_arrivals(7, 40, 2.0)), small_cluster(2)
    played = play("saga_paper", plan, cluster, graphs=OracleGraphs(scripts), check=True)
    scored = 0
    for event, actions in played.log:
        for action in actions:
            if isinstance(event, RequestFinished) and isinstance(action, Retain):
                session, _, number = event.request.rpartition("/")
                assert (action.score == 0.0) == (int(number) == last[session])
                scored += 1
    assert scored == sum(script.num_steps for script in scripts)


def test_what_is_known_changes_what_is_decided() -> None:
    """Declared, learned and true graphs: every workflow finishes, and not in the same way."""
    scripts, arrivals = random_scripts(3, 60), random_arrivals(3, 60, 2.0)
    cluster = small_cluster(2, 6_000, max_num_seqs=8)
    declared = plan_of(scripts, arrivals, declared_steps={"agent": 4.0})
    learned = plan_of(scripts, arrivals)
    runs = [
        play("saga_paper", declared, cluster),
        play("saga_paper", learned, cluster),
        play("saga_paper", learned, cluster, graphs=OracleGraphs(scripts)),
    ]
    for played in runs:
        assert {each.outcome for each in played.record.workflows} == {Outcome.FINISHED}
        assert len(played.record.workflows) == 60
        assert not played.simulation.scheduler.state.workflows
    ends = {tuple(each.tct_us for each in played.record.workflows) for played in runs}
    assert len(ends) == 3, "they evict different KV"
