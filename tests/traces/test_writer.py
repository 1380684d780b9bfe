"""What is written in a format of others is read again, as far as the format can say it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.traces.strategies import several_workflows, told_apart

from saga.traces import (
    WRITERS,
    SessionScript,
    StepScript,
    TraceError,
    TraceFile,
    WorkflowScript,
    check_script,
    convert,
    read_scripts,
    trace_stats,
    write_scripts,
)
from saga.traces.base import Times
from saga.traces.blocks import BLOCK_TOKENS
from saga.traces.timeline import instant_times

WITH_TIMES = ("dynamo", "otel")
"""Formats that tell when calls began and ended."""
WITH_TREE = ("agentic-mooncake",)
"""Formats that tell who waits for whom."""
WITH_BLOCKS = ("dynamo", "agentic-mooncake")
"""Formats that tell what prompts share, by their blocks."""

STEP = StepScript(kept_tokens=0, new_tokens=500, output_tokens=40)
SCRIPT = WorkflowScript(id="a", sessions=(SessionScript(steps=(STEP,)),))


def written(folder: Path, scripts: Sequence[WorkflowScript], to: str) -> TraceFile:
    """Read again without a problem, and all of them keep the laws."""
    path = folder / "trace.jsonl"
    write_scripts(path, scripts, to=to)
    trace = read_scripts(path, strict=True)
    assert trace.kind == to
    for script in trace.scripts:
        check_script(script)
    return trace


def again(folder: Path, scripts: Sequence[WorkflowScript], to: str) -> list[WorkflowScript]:
    """In the order in which they were written."""
    order = {script.id: number for number, script in enumerate(scripts)}
    return sorted(written(folder, scripts, to).scripts, key=lambda script: order[script.id])


def sizes(script: WorkflowScript) -> list[list[tuple[int, int]]]:
    return [
        [(step.prompt_tokens, step.output_tokens) for step in session.steps]
        for session in script.sessions
    ]


def from_zero(script: WorkflowScript) -> Times:
    return tuple(sorted(instant_times(replace(script, submitted_us=0))))


@pytest.mark.parametrize("to", WRITERS)
@given(scripts=several_workflows)
def test_no_call_is_lost_and_none_changes_its_size(
    tmp_path_factory: pytest.TempPathFactory, to: str, scripts: list[WorkflowScript]
) -> None:
    read = again(tmp_path_factory.mktemp("trace"), scripts, to)
    assert [script.id for script in read] == [script.id for script in scripts]
    assert [sorted(sizes(script)) for script in read] == [sorted(sizes(one)) for one in scripts]


@pytest.mark.parametrize("to", WRITERS)
@settings(max_examples=20)
@given(scripts=several_workflows)
def test_the_same_scripts_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, to: str, scripts: list[WorkflowScript]
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    one, other = folder / "one.jsonl.gz", folder / "other.jsonl.gz"
    write_scripts(one, scripts, to=to)
    write_scripts(other, scripts, to=to)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("to", WITH_TIMES)
@given(scripts=several_workflows)
def test_the_same_calls_are_at_the_same_times(
    tmp_path_factory: pytest.TempPathFactory, to: str, scripts: list[WorkflowScript]
) -> None:
    """Of who spawned whom and who waited, these formats tell nothing else."""
    scripts = [told_apart(script) for script in scripts]
    trace = written(tmp_path_factory.mktemp("trace"), scripts, to)
    for script in scripts:
        assert tuple(sorted(trace.times[script.id])) == from_zero(script)
    for script in trace.scripts:
        assert from_zero(script) == tuple(sorted(trace.times[script.id]))


@pytest.mark.parametrize("to", WITH_TREE)
@given(scripts=several_workflows)
def test_the_same_sessions_wait_for_the_same(
    tmp_path_factory: pytest.TempPathFactory, to: str, scripts: list[WorkflowScript]
) -> None:
    for read, script in zip(
        again(tmp_path_factory.mktemp("trace"), scripts, to), scripts, strict=True
    ):
        assert sorted(map(waits, read.sessions)) == sorted(map(waits, script.sessions))
        assert from_zero(read) == from_zero(script)


def waits(session: SessionScript) -> tuple[bool, int, int, list[tuple[int, int, str]]]:
    """All but the last step's tool, of which nobody can tell; nobody waits after a last step."""
    steps = [(step.gap_us, step.tool_us, repr(step.tool)) for step in session.steps[:-1]]
    is_root = session.parent is None
    return is_root, session.spawn_step, 0 if is_root else session.delay_us, steps


@pytest.mark.parametrize("to", [*WITH_TIMES, *WITH_TREE, "aiperf-dag"])
@given(scripts=several_workflows)
def test_writing_again_what_was_read_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, to: str, scripts: list[WorkflowScript]
) -> None:
    """What a format cannot say is lost once."""
    folder = tmp_path_factory.mktemp("trace")
    once = written(folder, [told_apart(script) for script in scripts], to).scripts
    twice = written(folder, once, to).scripts
    assert without_prefix_names(twice) == without_prefix_names(once)


def without_prefix_names(scripts: Sequence[WorkflowScript]) -> list[WorkflowScript]:
    """Those of prefixes are numbered, as they come from the numbers of blocks."""
    numbers: dict[str | None, str | None] = {None: None}
    named = []
    for script in scripts:
        sessions = tuple(
            replace(one, prefix=numbers.setdefault(one.prefix, f"{len(numbers)}"))
            for one in script.sessions
        )
        named.append(replace(script, sessions=sessions))
    return named


@pytest.mark.parametrize("to", WITH_BLOCKS)
@given(scripts=several_workflows)
def test_what_is_kept_is_told_in_blocks(
    tmp_path_factory: pytest.TempPathFactory, to: str, scripts: list[WorkflowScript]
) -> None:
    """By a session alone: of steps at the same time nobody can tell the order."""
    scripts = [told_apart(replace(script, sessions=script.sessions[:1])) for script in scripts]
    read = again(tmp_path_factory.mktemp("trace"), scripts, to)
    for one, other in zip(read, scripts, strict=True):
        for (before, step), after in zip(
            pairwise(other.sessions[0].steps), one.sessions[0].steps[1:], strict=True
        ):
            assert after.kept_tokens == in_blocks(before, step)


def in_blocks(before: StepScript, step: StepScript) -> int:
    """The whole blocks of the previous prompt; or all, if all of these are kept and all fits."""
    context = before.prompt_tokens + before.output_tokens
    blocks = min(step.kept_tokens, before.prompt_tokens) // BLOCK_TOKENS
    if blocks == before.prompt_tokens // BLOCK_TOKENS and step.prompt_tokens >= context:
        return min(context, step.prompt_tokens - 1)
    return min(blocks * BLOCK_TOKENS, step.prompt_tokens - 1)


@given(scripts=several_workflows)
def test_text_tells_exactly_what_is_kept(
    tmp_path_factory: pytest.TempPathFactory, scripts: list[WorkflowScript]
) -> None:
    """But for outputs, which it leaves open: a prompt that could begin with one does."""
    read = again(tmp_path_factory.mktemp("trace"), scripts, "aiperf-dag")
    roots = [(one.sessions[0], other.sessions[0]) for one, other in zip(read, scripts, strict=True)]
    for one, other in roots:
        for (before, step), after in zip(pairwise(other.steps), one.steps[1:], strict=True):
            context = before.prompt_tokens + before.output_tokens
            shared = min(step.kept_tokens, before.prompt_tokens)
            whole = shared == before.prompt_tokens and step.prompt_tokens >= context
            assert after.kept_tokens == min(context if whole else shared, step.prompt_tokens - 1)


@pytest.mark.parametrize("to", ["dynamo", "agentic-mooncake", "aiperf-dag"])
def test_forks_and_common_prefixes_are_found_again(tmp_path: Path, to: str) -> None:
    first = replace(STEP, kept_tokens=640, gap_us=5000)
    root = SessionScript(
        steps=(first, replace(STEP, kept_tokens=1180)), prefix="system", prefix_tokens=640
    )
    fork = SessionScript(
        steps=(replace(STEP, kept_tokens=1180),),
        parent=0,
        spawn_step=0,
        delay_us=1000,
        forked_tokens=1180,
        blocking=False,
    )
    other = SessionScript(
        steps=(replace(STEP, kept_tokens=640),), prefix="system", prefix_tokens=640
    )
    scripts = [
        WorkflowScript(id="a", sessions=(root, fork), submitted_us=0),
        WorkflowScript(id="b", sessions=(other,), submitted_us=0),
    ]
    one, another = again(tmp_path, scripts, to)
    assert one.sessions[0].prefix == another.sessions[0].prefix is not None
    assert one.sessions[1].forked_tokens == 1180
    kept = [[step.kept_tokens for step in x.steps] for x in (*one.sessions, *another.sessions)]
    assert kept == [[640, 1180], [1180], [640]]


@pytest.mark.parametrize("to", WRITERS)
def test_nothing_is_left_of_a_file_that_cannot_be_finished(tmp_path: Path, to: str) -> None:
    path = tmp_path / "trace.jsonl"
    with pytest.raises(ValueError, match="'a' is used twice"):
        write_scripts(path, [SCRIPT, SCRIPT], to=to)
    assert not path.exists()


def test_names_of_sessions_are_not_used_twice(tmp_path: Path) -> None:
    child = SessionScript(steps=(STEP,), parent=0)
    scripts = [replace(SCRIPT, sessions=(*SCRIPT.sessions, child)), replace(SCRIPT, id="a/1")]
    with pytest.raises(ValueError, match="'a/1' of workflow 'a/1' is used twice"):
        write_scripts(tmp_path / "trace.jsonl", scripts, to="otel")
    assert len(again(tmp_path, scripts, "dynamo")) == 2


def test_a_format_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no format 'csv' to write; there are saga, dynamo"):
        write_scripts(tmp_path / "x", [SCRIPT], to="csv")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere/t\.jsonl: No such file"):
        write_scripts(tmp_path / "nowhere" / "t.jsonl", [SCRIPT], to="otel")


@pytest.mark.parametrize("between", [*WITH_TIMES, *WITH_TREE])
def test_times_go_from_format_to_format(tmp_path: Path, between: str) -> None:
    """How long calls took, where both formats tell; the gaps in any case."""
    source = tmp_path / "source.jsonl"
    steps = (replace(STEP, gap_us=3_000_000, tool="bash", tool_us=1_000_000), STEP)
    script = WorkflowScript(id="w", sessions=(SessionScript(steps=steps),), submitted_us=0)
    times = {"w": (((0, 2_000_000), (5_000_000, 9_000_000)),)}
    write_scripts(source, [script], to="dynamo", times=times)
    convert(source, tmp_path / "between", between)
    trace = convert(tmp_path / "between", tmp_path / "target", "otel")
    assert (trace.times == times) == (between in WITH_TIMES)
    (read,) = read_scripts(tmp_path / "target", strict=True).scripts
    assert [step.gap_us for step in read.sessions[0].steps] == [3_000_000, 0]
    assert read.sessions[0].steps[0].tool_us == 1_000_000


@pytest.mark.parametrize("to", WRITERS)
def test_statistics_stay_the_same(tmp_path: Path, to: str) -> None:
    """Of agents that keep their whole context."""
    scripts = []
    for number in range(20):
        steps, context = [], 0
        for index in range(1 + number % 5):
            steps.append(
                StepScript(
                    kept_tokens=context,
                    new_tokens=100 + 7 * number,
                    output_tokens=30 + index,
                    tool="bash",
                    tool_us=2_000 * index,
                    gap_us=3_000 * index + 1_000,
                )
            )
            context = steps[-1].prompt_tokens + steps[-1].output_tokens
        steps[-1] = replace(steps[-1], gap_us=0, tool_us=0, tool=None)
        session = SessionScript(steps=tuple(steps))
        scripts.append(WorkflowScript(id=str(number), sessions=(session,), submitted_us=number))
    before = trace_stats(written(tmp_path, scripts, "saga"))
    after = trace_stats(written(tmp_path, scripts, to))
    same = {"workflows", "sessions", "steps", "prompt_tokens", "new_tokens", "output_tokens"}
    same |= {"gap_s", "ideal_reuse"} | ({"tools"} if to != "aiperf-dag" else set())
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


@given(several_workflows, st.sampled_from(list(WRITERS)))
def test_what_a_file_becomes_can_be_played(
    tmp_path_factory: pytest.TempPathFactory, scripts: list[WorkflowScript], to: str
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    write_scripts(folder / "one", scripts, to=to)
    convert(folder / "one", folder / "two", "saga", strict=True)
    assert read_scripts(folder / "two", strict=True).scripts
