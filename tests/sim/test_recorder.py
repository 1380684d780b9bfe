"""A workflow's parts of TCT, worked out on paper and as laws over whole runs."""

import pytest
from tests.sim.factory import (
    SECOND,
    chat,
    plan_of,
    play,
    random_arrivals,
    random_scripts,
    small_cluster,
    workflow,
)

from saga.report.records import Outcome, WorkflowRecord
from saga.sim.plan import EngineLoss
from saga.sim.recorder import Recorder

SCRIPT = workflow(
    "w", chat((10, 5), (10, 5)), tenant="acme", tenant_class="heavy", agent_type="coder"
)


def submitted(*, measured: bool = True) -> tuple[Recorder, WorkflowRecord]:
    recorder = Recorder()
    recorder.submit(SCRIPT, 1_000, measured=measured, alone_us=70, expected_us=90, share_us=80)
    (record,) = recorder.workflows
    return recorder, record


def ask(
    recorder: Recorder, arrived: int, *, root: bool = True, regenerated_share: float = 0.0
) -> None:
    """Waits for 100, is prefilled for 400 and generates for 1,000 us."""
    recorder.request(
        "w",
        root=root,
        arrived=arrived,
        started=arrived + 100,
        first_token=arrived + 500,
        finished=arrived + 1_500,
        regenerated_share=regenerated_share,
    )


def test_a_new_record_is_unfinished_and_knows_its_script() -> None:
    recorder, record = submitted()
    assert record.outcome is Outcome.UNFINISHED
    assert (record.tenant, record.tenant_class, record.agent_type) == ("acme", "heavy", "coder")
    assert (record.num_steps, record.alone_us, record.expected_us) == (2, 70, 90)
    assert record.share_us == 80
    assert (record.submitted_us, record.finished_us, record.tct_us) == (1_000, None, None)
    assert recorder.live == {"w": record}


def test_the_roots_parts_add_up_to_the_tct() -> None:
    recorder, record = submitted()
    ask(recorder, 1_000)
    recorder.gap("w", 300, 0)
    ask(recorder, 2_800, regenerated_share=0.25)
    recorder.end("w", 4_300, Outcome.FINISHED, 4_300)
    assert record.queue_us == 200
    assert (record.prefill_us, record.regenerated_us) == (400 + 300, 100)
    assert (record.decode_us, record.tool_us, record.subagents_us) == (2_000, 300, 0)
    assert record.tct_us == 3_300 == parts(record)
    assert recorder.live == {}


def test_subagents_count_as_one_wait_of_the_root() -> None:
    recorder, record = submitted()
    ask(recorder, 1_000)  # until 2,500
    ask(recorder, 2_500, root=False)  # until 4,000
    recorder.gap("w", 300, 1_500)
    ask(recorder, 4_300)  # until 5,800
    recorder.end("w", 6_000, Outcome.FINISHED, 5_800)  # one outlived the root
    assert (record.queue_us, record.prefill_us, record.decode_us) == (200, 800, 2_000)
    assert record.subagents_us == 1_500 + 200
    assert record.tct_us == 5_000 == parts(record)


def test_the_longest_wait_is_that_of_any_request() -> None:
    recorder, record = submitted()
    ask(recorder, 1_000)
    assert record.longest_wait_us == 100
    recorder.waited("w", 900)
    recorder.waited("w", 300)
    assert record.longest_wait_us == 900


def test_first_tokens_are_those_of_all_requests_of_measured_workflows() -> None:
    recorder, _ = submitted()
    ask(recorder, 1_000)
    ask(recorder, 2_000, root=False)
    assert {name: list(times) for name, times in recorder.ttft_us.items()} == {"heavy": [500, 500]}
    recorder, _ = submitted(measured=False)
    ask(recorder, 1_000)
    assert recorder.ttft_us == {}


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.TIMED_OUT])
def test_what_did_not_finish_has_no_tct(outcome: Outcome) -> None:
    recorder, record = submitted()
    ask(recorder, 1_000)
    recorder.end("w", 9_000, outcome, None)
    assert (record.outcome, record.finished_us, record.tct_us) == (outcome, None, None)
    assert record.subagents_us == 0
    assert recorder.live == {}


def parts(record: WorkflowRecord) -> int:
    return (
        record.queue_us
        + record.prefill_us
        + record.regenerated_us
        + record.decode_us
        + record.tool_us
        + record.subagents_us
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("preset", ["vllm", "saga_paper", "saga"])
def test_law_the_parts_of_every_workflow_of_a_run_add_up(preset: str, seed: int) -> None:
    """With sub-agents, forks, cuts, evictions, preemptions and moves."""
    plan = plan_of(random_scripts(seed, 25), random_arrivals(seed, 25, 2.0))
    record = play(preset, plan, small_cluster(2, 6_000, max_num_seqs=3)).record
    assert len(record.workflows) == 25
    for one in record.workflows:
        assert one.outcome is Outcome.FINISHED
        assert one.tct_us == parts(one)
        assert min(one.queue_us, one.prefill_us, one.regenerated_us, one.decode_us) >= 0
        assert min(one.tool_us, one.subagents_us) >= 0
        assert one.longest_wait_us <= (one.tct_us or 0)


def test_law_the_parts_add_up_when_engines_are_lost_and_clients_give_up() -> None:
    plan = plan_of(
        random_scripts(5, 25),
        random_arrivals(5, 25, 2.0),
        losses=[EngineLoss(engine=0, at=4 * SECOND, back=6 * SECOND)],
        client_timeout_us=8 * SECOND,
    )
    record = play("saga_paper", plan, small_cluster(2, 6_000, max_num_seqs=3)).record
    outcomes = {one.outcome for one in record.workflows}
    assert outcomes == {Outcome.FINISHED, Outcome.TIMED_OUT}
    for one in record.workflows:
        if one.outcome is Outcome.FINISHED:
            assert one.tct_us == parts(one)
        else:
            assert one.tct_us is None
            assert one.longest_wait_us <= 8 * SECOND
