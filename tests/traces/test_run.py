"""What was played is read again from the trace that the run wrote."""

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.factory import (
    SECOND,
    Played,
    chat,
    plan_of,
    play,
    random_arrivals,
    random_scripts,
    small_cluster,
    workflow,
)
from tests.traces.strategies import workflows

import saga
from saga.core import actions as act
from saga.core import events as ev
from saga.traces import (
    Problem,
    SessionScript,
    TraceError,
    TraceFile,
    TraceWriter,
    WorkflowScript,
    check_script,
    read_scripts,
)

AMPLE = small_cluster(num_engines=2, capacity=None)
Events = list[ev.Event]
Happened = Sequence[tuple[ev.Event, Sequence[act.Action]]]


def write(path: Path, happened: Happened, **about: str) -> Path:
    with TraceWriter(path, about) as observe:
        for event, actions in happened:
            observe(event, actions)
    return path


def run_of(scripts: Sequence[WorkflowScript], arrivals: Sequence[int], **options: Any) -> Played:
    """A run on a cluster with room for everything."""
    return play("saga", plan_of(scripts, arrivals, **options), AMPLE)


def several(count: int = 6) -> Played:
    """Workflows with sub-agents, at the same time."""
    return run_of(random_scripts(4, count), random_arrivals(4, count, per_second=5.0))


def quiet(events: Sequence[ev.Event]) -> Happened:
    """Events that nobody reacts to."""
    return [(event, ()) for event in events]


def arrived(request: str, at: int, *, session: str = "s", prompt: int = 10) -> ev.RequestArrived:
    return ev.RequestArrived(at=at, request=request, session=session, prompt_tokens=prompt)


def finished(request: str, at: int, *, output: int = 5) -> ev.RequestFinished:
    return ev.RequestFinished(at=at, request=request, output_tokens=output)


def submitted(workflow: str = "w", session: str = "s", at: int = 0) -> Events:
    return [
        ev.WorkflowSubmitted(at=at, workflow=workflow, tenant="t"),
        ev.SessionOpened(at=at, session=session, workflow=workflow),
    ]


def served(workflow: str, session: str | None = None, at: int = 0) -> Events:
    """A workflow of one step: five events."""
    session, request = session or f"{workflow}/0", f"{workflow}/0/0"
    return [
        *submitted(workflow, session, at),
        arrived(request, at, session=session),
        finished(request, at + 9),
        ev.WorkflowDone(at=at + 9, workflow=workflow),
    ]


# ---- what was played is read again


def as_opened(run: Played, script: WorkflowScript) -> list[SessionScript]:
    """The sessions of a workflow in the order in which they began."""
    names = [
        event.session
        for event, _ in run.log
        if isinstance(event, ev.SessionOpened) and event.workflow == script.id
    ]
    return [script.sessions[int(name.rpartition("/")[2])] for name in names]


def sizes(session: SessionScript) -> list[tuple[int, int, str | None]]:
    return [(step.prompt_tokens, step.output_tokens, step.tool) for step in session.steps]


def gaps(session: SessionScript) -> list[int]:
    return [step.gap_us for step in session.steps]


@given(st.lists(workflows(), min_size=1, max_size=3, unique_by=lambda script: script.id))
def test_the_steps_that_were_played_are_read_again(
    tmp_path_factory: pytest.TempPathFactory, scripts: list[WorkflowScript]
) -> None:
    run = run_of(scripts, [7] * len(scripts))
    trace = read_scripts(write(tmp_path_factory.mktemp("run") / "r", run.log), strict=True)
    assert trace.kind == "run"
    assert [(again.id, again.tenant, again.agent_type) for again in trace.scripts] == [
        (script.id, script.tenant, script.agent_type) for script in scripts
    ]
    for script, again in zip(scripts, trace.scripts, strict=True):
        check_script(again)
        sessions = as_opened(run, script)
        assert list(map(sizes, again.sessions)) == list(map(sizes, sessions))
        for before, after in zip(sessions, again.sessions, strict=True):
            own = None if before.parent is None else script.sessions[before.parent]
            assert own == (None if after.parent is None else sessions[after.parent])
            if all(one.blocking for one in script.sessions if is_child(one, before, script)):
                assert gaps(after) == gaps(before)


def is_child(one: SessionScript, session: SessionScript, script: WorkflowScript) -> bool:
    return one.parent is not None and script.sessions[one.parent] is session


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_agents_that_keep_their_context_are_read_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    scripts = random_scripts(seed, count, rich=False)
    arrivals = random_arrivals(seed, count, per_second=1.0)
    path = write(tmp_path_factory.mktemp("run") / "r.gz", run_of(scripts, arrivals).log)
    trace = read_scripts(path, strict=True)
    assert trace.notes == []
    assert trace.scripts == [
        replace(script, submitted_us=at - arrivals[0])
        for script, at in zip(scripts, arrivals, strict=True)
    ]


def test_what_a_full_cluster_delays_is_no_gap(tmp_path: Path) -> None:
    scripts = random_scripts(2, 8, rich=False)
    plan = plan_of(scripts, agents=8)
    run = play("saga", plan, small_cluster(num_engines=1, capacity=9_000, max_num_seqs=2))
    trace = read_scripts(write(tmp_path / "r", run.log), strict=True)
    assert [script.sessions for script in trace.scripts] == [script.sessions for script in scripts]


# ---- sub-agents

ROOT = chat((500, 50), (100, 50), (100, 50), gap=10 * SECOND)


def read_one(folder: Path, *sessions: SessionScript) -> tuple[SessionScript, ...]:
    run = run_of([workflow("w", *sessions)], [0])
    (script,) = read_scripts(write(folder / "r", run.log), strict=True).scripts
    return script.sessions


@pytest.mark.parametrize("gap", [0, 10 * SECOND])
def test_the_gap_begins_when_the_last_sub_agent_has_reported(tmp_path: Path, gap: int) -> None:
    root = chat((500, 50), (100, 50), (100, 50), gap=gap)
    short = chat((40, 5), parent=0, spawn_step=1, delay_us=300)
    long = chat((40, 500), (10, 500), gap=SECOND, parent=0, spawn_step=1, delay_us=700)
    inner = chat((20, 5), parent=2, spawn_step=0, delay_us=20)
    assert read_one(tmp_path, root, short, long, inner) == (root, short, long, inner)


def test_a_parent_that_goes_on_earlier_did_not_wait(tmp_path: Path) -> None:
    long = chat((40, 5), (10, 5), gap=15 * SECOND, parent=0, spawn_step=0, blocking=False)
    assert read_one(tmp_path, ROOT, long) == (ROOT, long)


def test_a_report_that_came_in_time_counts_as_waited_for(tmp_path: Path) -> None:
    quick = chat((40, 5), parent=0, spawn_step=0, delay_us=9 * SECOND, blocking=False)
    root, again = read_one(tmp_path, ROOT, quick)
    assert again == replace(quick, blocking=True)
    assert 0 < gaps(root)[0] < SECOND
    assert gaps(root)[1:] == gaps(ROOT)[1:]


def test_a_sub_agent_that_begins_late_belongs_to_the_step_before(tmp_path: Path) -> None:
    late = chat((40, 5), parent=0, spawn_step=0, delay_us=15 * SECOND, blocking=False)
    _, again = read_one(tmp_path, ROOT, late)
    assert again.spawn_step == 1
    assert 0 < again.delay_us < 5 * SECOND


def test_of_the_last_step_nobody_waits_for_sub_agents(tmp_path: Path) -> None:
    last = chat((40, 5), parent=0, spawn_step=2, delay_us=5)
    assert read_one(tmp_path, ROOT, last) == (ROOT, replace(last, blocking=False))


# ---- what is written


def test_the_file_is_json_lines_with_a_header(tmp_path: Path) -> None:
    submitted = ev.WorkflowSubmitted(at=5, workflow="w", tenant="t")
    tick, wake = ev.Tick(at=6), act.WakeAt(at=9, reason="epoch")
    path = write(tmp_path / "r", [(submitted, []), (tick, [wake])], preset="saga", seed="1")
    assert path.read_text().splitlines() == [
        f'{{"format":"saga.trace.v1","version":"{saga.__version__}","preset":"saga","seed":"1"}}',
        '{"event":"WorkflowSubmitted","at":5,"workflow":"w","tenant":"t","agent_type":"agent",'
        '"weight":1.0,"deadline":null,"mean_steps":null,"priority":1.0,"index":0,"actions":[]}',
        '{"event":"Tick","at":6,"actions":[{"action":"WakeAt","at":9,"reason":"epoch"}]}',
    ]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = {
    "int": st.integers(0, 1 << 62),
    "str": st.text(max_size=5),
    "bool": st.booleans(),
    "float": NUMBERS,
    "int | None": st.none() | st.integers(0, 1 << 62),
    "str | None": st.none() | st.text(max_size=5),
    "float | None": st.none() | NUMBERS,
    "RefusalCode | None": st.none() | st.sampled_from(get_args(act.RefusalCode)),
}
EVENTS = {kind.__name__: kind for kind in get_args(ev.Event)}
ACTIONS = {kind.__name__: kind for kind in get_args(act.Action)}


def any_of(kinds: Sequence[type[Any]]) -> st.SearchStrategy[Any]:
    values = {kind: {one.name: VALUES[str(one.type)] for one in fields(kind)} for kind in kinds}
    return st.one_of([st.builds(kind, **values[kind]) for kind in kinds])


@given(
    st.lists(
        st.tuples(any_of(get_args(ev.Event)), st.lists(any_of(get_args(act.Action)), max_size=2)),
        max_size=4,
    )
)
def test_nothing_is_omitted(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[Any, list[Any]]]
) -> None:
    path = write(tmp_path_factory.mktemp("run") / "r", happened)
    _, *lines = map(json.loads, path.read_bytes().split(b"\n")[:-1])
    assert [
        (
            msgspec.convert(line, EVENTS[line["event"]]),
            [msgspec.convert(action, ACTIONS[action["action"]]) for action in line["actions"]],
        )
        for line in lines
    ] == happened


def test_lines_of_a_workflow_name_and_count_it(tmp_path: Path) -> None:
    run = several()
    _, *lines = map(json.loads, write(tmp_path / "r", run.log).read_text().splitlines())
    for line in lines:
        name = line.get("session", line.get("request", line.get("workflow")))
        assert line.get("workflow") == (None if name is None else name.partition("/")[0])
    for script in random_scripts(4, 6):
        counted = [line["index"] for line in lines if line.get("workflow") == script.id]
        assert counted == list(range(len(counted)))


def test_names_may_be_used_again(tmp_path: Path) -> None:
    """By a workflow that ends later, and by one that ends earlier."""
    one, two, three = (served(name, session="s") for name in "abc")
    events = [*one[:-1], *two[:-1], one[-1], *three, two[-1]]
    trace = read_scripts(write(tmp_path / "r", quiet(events)), strict=True)
    assert [script.id for script in trace.scripts] == ["a", "b", "c"]


def test_the_same_run_gives_the_same_bytes_packed_or_not(tmp_path: Path) -> None:
    log = several().log
    plain = write(tmp_path / "r.jsonl", log, preset="saga").read_bytes()
    packed = write(tmp_path / "r.jsonl.gz", log, preset="saga").read_bytes()
    assert gzip.decompress(packed) == plain
    assert packed[4:8] == bytes(4)  # no time of writing
    assert len(packed) < len(plain) / 4
    assert write(tmp_path / "other.gz", several().log, preset="saga").read_bytes() == packed


def test_a_long_run_needs_no_more_memory(tmp_path: Path) -> None:
    def peak(num_workflows: int) -> int:
        tracemalloc.start()
        with TraceWriter(tmp_path / "r") as observe:
            for number in range(num_workflows):
                for event in served(f"w{number}"):
                    observe(event, [])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(1000) < peak(100) + 900 * 30, "a workflow leaves less behind than any object takes"


def test_an_interrupted_run_leaves_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    with pytest.raises(KeyboardInterrupt), TraceWriter(path) as observe:
        for event in (*served("a"), *served("b")[:-1]):
            observe(event, [])
        raise KeyboardInterrupt
    trace = read_scripts(path)
    assert [script.id for script in trace.scripts] == ["a"]
    assert trace.problems == [Problem(7, "workflow 'b' has no end")]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="nowhere/r: No such file"):
        TraceWriter(tmp_path / "nowhere" / "r")


# ---- damaged files


def ids(trace: TraceFile) -> list[str]:
    return [script.id for script in trace.scripts]


def body(script: WorkflowScript) -> WorkflowScript:
    """Without its time, which counts from the first workflow that is left."""
    return replace(script, submitted_us=None)


def cut(line: bytes) -> Iterator[bytes]:
    yield line[: len(line) // 2]


def garble(line: bytes) -> Iterator[bytes]:
    yield line.replace(b'"at":', b'"at"\xff', 1)


def lose(line: bytes) -> Iterator[bytes]:
    return iter(())


@pytest.mark.parametrize("damage", [cut, garble, lose])
def test_a_damaged_line_loses_only_its_workflow(
    tmp_path: Path, damage: Callable[[bytes], Iterator[bytes]]
) -> None:
    path = write(tmp_path / "r", several(4).log)
    whole = read_scripts(path, strict=True)
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines[1:], 1):
        path.write_bytes(b"\n".join([*lines[:number], *damage(line), *lines[number + 1 :]]))
        owner, trace = json.loads(line).get("workflow"), read_scripts(path)
        rest = [script for script in whole.scripts if script.id != owner]
        assert list(map(body, trace.scripts)) == list(map(body, rest))
        told = [problem for problem in trace.problems if repr(owner) in problem.reason]
        assert len(told) == (owner is not None)
        assert len(trace.problems) - len(told) == (damage is not lose)


def test_what_is_missing_is_told_at_the_submission(tmp_path: Path) -> None:
    path = write(tmp_path / "r", quiet([*served("a"), *served("b"), *served("c")]))
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines[1:7], "{}", *lines[8:]]))
    trace = read_scripts(path)
    assert ids(trace) == ["c"]
    assert trace.problems == [
        Problem(2, "workflow 'a' has no submission"),
        Problem(6, "workflow 'b' lacks lines before line 9"),
        Problem(8, "neither an event nor a header"),
    ]


def test_a_session_that_is_cut_short_by_damage_is_not_read(tmp_path: Path) -> None:
    """All four lines of the middle step are gone; what is left looks like a workflow."""
    run = run_of([workflow("v", ROOT), workflow("w", ROOT)], [0, 0])
    path = write(tmp_path / "r", run.log)
    lines = [line for line in path.read_text().splitlines() if "w/0/1" not in line]
    path.write_text("\n".join(lines))
    trace = read_scripts(path)
    (problem,) = trace.problems
    assert ids(trace) == ["v"]
    assert problem.reason.startswith("workflow 'w' lacks lines before line")


def test_without_its_header_a_file_is_no_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "r", quiet(served("a")))
    path.write_text(path.read_text().replace("saga.trace.v1", "saga.trace.v0"))
    with pytest.raises(TraceError, match="no known trace format"):
        read_scripts(path)


def test_files_may_be_joined(tmp_path: Path) -> None:
    first = write(tmp_path / "a", quiet([*served("a"), *served("b")[:-1]]))
    second = write(tmp_path / "b", quiet([*served("b"), *served("a")]))
    both = tmp_path / "both"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    trace = read_scripts(both)
    assert ids(trace) == ["a", "b"]
    assert trace.problems == [
        Problem(7, "workflow 'b' was submitted again before it was done"),
        Problem(17, "task 'a' was in line 2 already"),
    ]


def test_events_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "r", quiet(served("a")))
    lines = path.read_text().replace("RequestStarted", "RequestAdmired").splitlines()
    path.write_text("\n".join([*lines, '{"event":"Eclipse","at":99}']))
    assert ids(read_scripts(path, strict=True)) == ["a"]


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


@given(st.data())
def test_whatever_a_line_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("run") / "r", quiet([*served("a"), *served("b", at=2)]))
    header, *lines = map(json.loads, path.read_text().splitlines())
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.sampled_from(lines))
        line[data.draw(st.sampled_from(list(line)))] = data.draw(json_values)
    path.write_text("\n".join(map(json.dumps, [header, *lines])))
    try:
        trace = read_scripts(path)
    except TraceError as error:
        assert str(path) in str(error)
    else:
        for script in trace.scripts:
            check_script(script)


# ---- what live clients do

GOOD = served("good")


def read_events(folder: Path, *events: ev.Event) -> TraceFile:
    """Of a workflow, submitted in line 2, beside one that is good."""
    at = events[-1].at
    last: Events = [ev.SessionClosed(at=at, session="s"), ev.WorkflowDone(at=at, workflow="w")]
    later = [replace(event, at=at) for event in GOOD]
    return read_scripts(write(folder / "r", quiet([*submitted(), *events, *last, *later])))


def steps_of(trace: TraceFile) -> list[tuple[int, int, int]]:
    """Kept tokens, prompt and gap of each step of the first session."""
    session = trace.scripts[0].sessions[0]
    return [(step.kept_tokens, step.prompt_tokens, step.gap_us) for step in session.steps]


@pytest.mark.parametrize(
    "end",
    [
        [],
        [ev.RequestCancelled(at=50, request="2")],
        [ev.RequestFailed(at=50, request="2", reason="too long")],
        [ev.RequestFailed(at=50, request="2", reason="engine lost", retry=True)],
    ],
    ids=["timed out", "cancelled", "failed", "failed, to be retried"],
)
def test_a_workflow_that_was_not_served_to_its_end_is_left_out(tmp_path: Path, end: Events) -> None:
    trace = read_events(tmp_path, arrived("1", 0), arrived("2", 40), finished("1", 45), *end)
    assert ids(trace) == ["good"]
    assert trace.problems == [Problem(2, "workflow 'w' ended before its request '2' did")]


def test_rejected_and_abandoned_workflows_of_a_run_are_left_out(tmp_path: Path) -> None:
    patient, hasty = workflow("a", chat((500, 5))), workflow("b", chat((500, 50_000)))
    run = run_of([patient, hasty], [0, 0], client_timeout_us=60 * SECOND)
    trace = read_scripts(write(tmp_path / "r", run.log))
    assert ids(trace) == ["a"]
    assert "workflow 'b' ended before its request 'b/0/0' did" in trace.problems[0].reason


def test_a_request_that_was_tried_again_is_one_step(tmp_path: Path) -> None:
    refused = ev.RequestFailed(at=30, request="2", reason="engine lost")
    steps: Events = [arrived("1", 0), finished("1", 10), arrived("2", 25), refused]
    trace = read_events(tmp_path, *steps, arrived("3", 80, prompt=20), finished("3", 90))
    assert trace.problems == []
    assert steps_of(trace) == [(0, 10, 15), (15, 20, 0)]


def test_a_request_that_lost_its_engine_is_one_step(tmp_path: Path) -> None:
    lost = ev.RequestFailed(at=30, request="1", reason="engine lost", retry=True)
    trace = read_events(tmp_path, arrived("1", 0), lost, finished("1", 90))
    assert trace.problems == []
    assert steps_of(trace) == [(0, 10, 0)]


def test_a_prompt_keeps_the_whole_context_or_nothing(tmp_path: Path) -> None:
    prompts = [10, 15, 19, 25]  # 5 tokens of output each
    events: Events = []
    for number, prompt in enumerate(prompts):
        events += [
            arrived(str(number), 9 * number, prompt=prompt),
            finished(str(number), 9 * number),
        ]
    trace = read_events(tmp_path, *events)
    assert [kept for kept, _, _ in steps_of(trace)] == [0, 14, 0, 24]
    assert [prompt for _, prompt, _ in steps_of(trace)] == prompts
    assert trace.notes == [
        "1 prompts shorter than the context before, played as keeping nothing of it"
    ]


def test_a_step_without_output_has_one_token(tmp_path: Path) -> None:
    steps: Events = [
        arrived("1", 0),
        finished("1", 10, output=0),
        arrived("2", 12),
        finished("2", 20),
    ]
    trace = read_events(tmp_path, *steps)
    assert [step.output_tokens for step in trace.scripts[0].sessions[0].steps] == [1, 5]
    assert steps_of(trace) == [(0, 10, 2), (9, 10, 0)]
    assert trace.notes == ["1 steps without output, played with 1 token"]


def test_requests_at_the_same_time_are_played_one_after_another(tmp_path: Path) -> None:
    steps: Events = [arrived("1", 0), arrived("2", 1), finished("1", 10), finished("2", 12)]
    trace = read_events(tmp_path, *steps)
    assert trace.problems == []
    assert steps_of(trace) == [(0, 10, 0), (0, 10, 0)]
    assert (
        "1 steps that overlap the next one of their session, played one after another"
        in trace.notes
    )


def opened(session: str, at: int, parent: str | None) -> ev.SessionOpened:
    return ev.SessionOpened(at=at, session=session, workflow="w", parent=parent)


def test_a_sub_agent_that_began_before_its_parents_first_step_ended_is_left_out(
    tmp_path: Path,
) -> None:
    early: Events = [opened("sub", 2, "s"), arrived("x", 3, session="sub"), finished("x", 4)]
    inner: Events = [opened("inner", 5, "sub"), arrived("y", 6, session="inner"), finished("y", 7)]
    trace = read_events(tmp_path, arrived("1", 0), *early, *inner, finished("1", 10))
    assert trace.problems == [
        Problem(5, "session 'sub' was opened before a step of its parent 's' ended"),
        Problem(8, "session 'inner' was opened before a step of its parent 'sub' ended"),
    ]
    assert steps_of(trace) == [(0, 10, 0)]
    assert len(trace.scripts[0].sessions) == 1


def test_a_second_session_without_a_parent_is_the_firsts(tmp_path: Path) -> None:
    second: Events = [opened("t", 12, None), arrived("2", 15, session="t"), finished("2", 30)]
    trace = read_events(tmp_path, arrived("1", 0), finished("1", 10), *second)
    _, session = trace.scripts[0].sessions
    assert (session.parent, session.spawn_step, session.delay_us) == (0, 0, 5)
    assert trace.notes == ["1 sessions without a parent, played as sub-agents of the first one"]


def test_a_session_that_never_asks_is_not_there(tmp_path: Path) -> None:
    trace = read_events(tmp_path, arrived("1", 0), finished("1", 10), opened("t", 12, "s"))
    assert trace.problems == []
    assert len(trace.scripts[0].sessions) == 1


def test_a_workflow_that_never_asks_is_left_out(tmp_path: Path) -> None:
    trace = read_events(tmp_path, ev.Tick(at=1))
    assert ids(trace) == ["good"]
    assert trace.problems == [Problem(2, "workflow 'w' has no session")]
