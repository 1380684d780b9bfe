"""The parts that several formats share."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.traces.strategies import workflows

from saga.traces import SessionScript, StepScript, WorkflowScript
from saga.traces.base import ReadLog
from saga.traces.blocks import BlockIds, shared_blocks
from saga.traces.gather import covered_us
from saga.traces.lines import read_lines
from saga.traces.timeline import instant_times

spans = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda span: (min(span), max(span)))


@given(st.lists(spans))
def test_time_at_once_is_counted_once(told: list[tuple[int, int]]) -> None:
    assert covered_us(told) == len({at for start, end in told for at in range(start, end)})


def test_a_part_of_a_block_is_shared_with_none() -> None:
    first = StepScript(kept_tokens=0, new_tokens=25, output_tokens=20)
    goes_on = StepScript(kept_tokens=45, new_tokens=5, output_tokens=1)
    session = SessionScript(steps=(first, goes_on))
    script = WorkflowScript(id="w", sessions=(session,))
    assert BlockIds(10).of_workflow(script) == [[[0, 1, 2], [0, 1, 3, 4, 5]]]


@given(workflows(), st.sampled_from([1, 7, 64]))
def test_ids_of_blocks_share_no_more_than_is_kept(script: WorkflowScript, block: int) -> None:
    for session, prompts in zip(script.sessions, BlockIds(block).of_workflow(script), strict=True):
        before: list[int] = []
        for step, ids in zip(session.steps, prompts, strict=True):
            assert len(ids) == -(-step.prompt_tokens // block)
            if before:
                assert shared_blocks(before, ids) * block <= step.kept_tokens
            before = ids


@given(workflows())
def test_no_call_begins_before_what_it_waits_for(script: WorkflowScript) -> None:
    times = instant_times(script)
    assert times[0][0][0] == (script.submitted_us or 0)
    for number, session in enumerate(script.sessions):
        starts = [start for start, _ in times[number]]
        assert all(
            after - before >= step.gap_us
            for before, after, step in zip(starts, starts[1:], session.steps, strict=False)
        )
        if session.parent is not None:
            spawning = times[session.parent][session.spawn_step :]
            assert starts[0] == spawning[0][1] + session.delay_us
            assert not session.blocking or len(spawning) == 1 or spawning[1][0] >= starts[-1]


@given(workflows())
def test_a_sub_agent_follows_the_step_that_spawned_it(script: WorkflowScript) -> None:
    order = {place: at for at, place in enumerate(script.in_order())}
    assert len(order) == script.num_steps
    for number, session in enumerate(script.sessions):
        assert all(order[number, n] < order[number, n + 1] for n in range(len(session.steps) - 1))
        if session.parent is not None:
            parent = session.parent
            last = order[number, len(session.steps) - 1]
            assert order[parent, session.spawn_step] < order[number, 0]
            assert last < order.get((parent, session.spawn_step + 1), last + 1)


def test_a_document_that_is_too_large_is_read_by_line(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_text('{\n"a": 1\n}\n')
    log = ReadLog(path, strict=True)
    assert [line.text for line in read_lines(path, log)] == [b'{\n"a": 1\n}']
    texts = [line.text for line in read_lines(path, log, max_document_bytes=5)]
    assert texts == [b"{", b'"a": 1', b"}"]
