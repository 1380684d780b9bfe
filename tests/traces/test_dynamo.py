import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.traces.reading import only, read_lines

from saga.traces import (
    Problem,
    SessionScript,
    StepScript,
    TraceFile,
    WorkflowScript,
    write_scripts,
)

START = 1_777_312_800_000
"""Milliseconds of the epoch."""


def event(kind: str, at_ms: float, session: str = "root", **fields: Any) -> dict[str, Any]:
    context = {"session_type_id": "research", "session_id": "run", "trajectory_id": session}
    if parent := fields.pop("parent", None):
        context["parent_trajectory_id"] = parent
    return {
        "schema": "dynamo.agent.trace.v1",
        "event_type": kind,
        "event_time_unix_ms": START + at_ms,
        "event_source": "dynamo",
        "agent_context": context,
        **fields,
    }


def call(
    start_ms: float, end_ms: float, prompt: int = 100, output: int = 10, **fields: Any
) -> dict[str, Any]:
    session, parent = fields.pop("session", "root"), fields.pop("parent", None)
    request = {
        "request_id": f"{session}-{start_ms}",
        "model": "m",
        "input_tokens": prompt,
        "output_tokens": output,
        "request_received_ms": START + start_ms,
        "total_time_ms": end_ms - start_ms,
    } | fields
    return event("request_end", end_ms, session, parent=parent, request=request)


def tool(start_ms: float, end_ms: float, name: str = "bash", **fields: Any) -> dict[str, Any]:
    told = {
        "tool_call_id": f"{name}-{start_ms}",
        "tool_class": name,
        "started_at_unix_ms": START + start_ms,
        "ended_at_unix_ms": START + end_ms,
    } | fields
    return event("tool_end", end_ms, tool=told)


def replay(prompt: int, blocks: list[int], block: int = 10) -> dict[str, Any]:
    return {"trace_block_size": block, "input_length": prompt, "input_sequence_hashes": blocks}


def read(folder: Path, *events: dict[str, Any]) -> TraceFile:
    return read_lines(folder / "trace.jsonl", map(json.dumps, events))


def sessions(folder: Path, *events: dict[str, Any]) -> tuple[SessionScript, ...]:
    return only(read(folder, *events)).sessions


def test_calls_and_tools_of_a_trajectory_are_the_steps_of_a_session(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        call(0, 2000),
        tool(2200, 2900, "grep"),
        call(3000, 4000, 150),
        call(9000, 9500, 40),
    )
    (script,) = trace.scripts
    assert (trace.kind, script.id, script.agent_type) == ("dynamo", "run", "research")
    assert script.sessions[0].steps == (
        StepScript(
            kept_tokens=0,
            new_tokens=100,
            output_tokens=10,
            tool="grep",
            tool_us=700_000,
            gap_us=1_000_000,
        ),
        StepScript(kept_tokens=110, new_tokens=40, output_tokens=10, gap_us=5_000_000),
        StepScript(kept_tokens=0, new_tokens=40, output_tokens=10),
    )
    assert trace.notes == [
        "1 prompts shorter than the context before, played as keeping nothing of it"
    ]
    start = START * 1000
    spans = ((0, 2_000_000), (3_000_000, 4_000_000), (9_000_000, 9_500_000))
    assert trace.times == {"run": (tuple((start + a, start + b) for a, b in spans),)}


def test_the_recorders_envelope_changes_nothing(tmp_path: Path) -> None:
    events = [call(0, 1000), tool(1100, 1200), call(2000, 3000, 200)]
    plain = sessions(tmp_path, *events)
    assert sessions(tmp_path, *({"timestamp": 7, "event": one} for one in events)) == plain


def test_the_newer_schema_names_sessions_and_their_parents(tmp_path: Path) -> None:
    def newer(told: dict[str, Any], **context: str) -> dict[str, Any]:
        return told | {"schema": "dynamo.request.trace.v1", "agent_context": context}

    trace = read(
        tmp_path,
        newer(call(0, 1000), session_id="s"),
        newer(call(2000, 3000), session_id="t", parent_session_id="s"),
        newer(call(4000, 5000), session_id="s"),
        newer(call(0, 1000), session_id="other"),
    )
    first, second = trace.scripts
    assert (first.id, len(first.sessions), second.id) == ("s", 2, "other")
    assert first.sessions[1].blocking


def test_the_first_schema_spoke_of_workflows_and_programs(tmp_path: Path) -> None:
    context = {"workflow_type_id": "w-type", "workflow_id": "w", "program_id": "p"}
    (script,) = read(tmp_path, call(0, 1000) | {"agent_context": context}).scripts
    assert (script.id, script.agent_type) == ("w", "w-type")


def test_a_request_without_a_context_is_a_workflow_of_its_own(tmp_path: Path) -> None:
    request = call(0, 1000)
    del request["agent_context"]
    assert [script.id for script in read(tmp_path, request, call(5, 6)).scripts] == [
        "root-0",
        "run",
    ]


def test_a_parent_waits_for_a_sub_agent_that_ends_before_it_goes_on(tmp_path: Path) -> None:
    root, child, late = sessions(
        tmp_path,
        call(0, 1000),
        call(1500, 2000, session="child", parent="root"),
        call(2500, 4000, session="child", parent="root"),
        call(1700, 9000, session="late", parent="root"),
        call(5000, 6000, 200),
    )
    assert (child.parent, child.spawn_step, child.delay_us, child.blocking) == (0, 0, 500_000, True)
    assert (late.delay_us, late.blocking) == (700_000, False)
    assert root.steps[0].gap_us == 1_000_000


def test_of_a_session_below_one_without_calls_the_nearest_above_is_the_parent(
    tmp_path: Path,
) -> None:
    silent = tool(1000, 1100)
    silent["agent_context"] |= {"trajectory_id": "silent", "parent_trajectory_id": "root"}
    _, below = sessions(
        tmp_path, call(0, 1000), silent, call(2000, 3000, session="below", parent="silent")
    )
    assert below.parent == 0


def test_sessions_without_a_parent_belong_to_the_first_one(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        call(3000, 4000, session="late"),
        call(0, 1000),
        call(9, 99, session="x", parent="?"),
    )
    assert len(trace.scripts[0].sessions) == 3
    assert set(trace.notes) == {
        "2 sessions without a parent, played as sub-agents of the first one",
        "1 sessions whose parent is not in the trace",
        "1 sub-agents that began before a step of their parent had ended",
    }


def test_hashes_tell_what_prompts_share(tmp_path: Path) -> None:
    (root, child), other = (
        script.sessions
        for script in read(
            tmp_path,
            call(0, 1000, 45, replay=replay(45, [1, 2, 3, 4, 50])),
            call(1100, 1200, 38, session="fork", parent="root", replay=replay(38, [1, 2, 3, 60])),
            call(2000, 3000, 70, replay=replay(70, [1, 2, 3, 4, 5, 6, 7])),
            call(4000, 5000, 70, replay=replay(70, [1, 2, 8, 9, 10, 11, 12])),
            call(0, 9, 25, replay=replay(25, [1, 2, 70]))
            | {"agent_context": {"session_id": "other", "trajectory_id": "x"}},
        ).scripts
    )
    assert [step.kept_tokens for step in root.steps] == [20, 55, 20]
    assert (child.forked_tokens, child.steps[0].kept_tokens) == (30, 30)
    assert (root.prefix_tokens, root.prefix) == (20, other[0].prefix)


def test_calls_out_of_order_tell_nothing_of_reuse(tmp_path: Path) -> None:
    (root,) = sessions(
        tmp_path,
        call(2000, 3000, 70, replay=replay(70, [1, 2, 3, 4, 5, 6, 7])),
        call(0, 1000, 45, replay=replay(45, [8, 9])),
    )
    assert [step.kept_tokens for step in root.steps] == [0, 55]


def test_what_was_cached_is_kept_at_least(tmp_path: Path) -> None:
    (root,) = sessions(tmp_path, call(0, 1000), call(2000, 3000, 80, cached_tokens=64))
    assert root.steps[1].kept_tokens == 64


@pytest.mark.parametrize(
    ("told", "tool_us"),
    [
        ([tool(1100, 1500), tool(1300, 1600), tool(1800, 1900)], 600_000),
        ([tool(1100, 9000)], 1_000_000),
        ([tool(0, 1500, started_at_unix_ms=None, duration_ms=300.0)], 300_000),
        ([tool(0, 1500, started_at_unix_ms=None, ended_at_unix_ms=None)], 0),
        (
            [
                event("tool_start", 1100, tool={"tool_class": "bash", "tool_call_id": "1"}),
                event("tool_error", 1350, tool={"tool_class": "bash", "tool_call_id": "1"}),
            ],
            250_000,
        ),
    ],
)
def test_time_in_tools_is_counted_once(
    tmp_path: Path, told: list[dict[str, Any]], tool_us: int
) -> None:
    (root,) = sessions(tmp_path, call(0, 1000), *told, call(2000, 3000, 200))
    assert (root.steps[0].tool, root.steps[0].tool_us) == ("bash", tool_us)


def test_the_longest_of_several_tools_names_the_step(tmp_path: Path) -> None:
    told = tool(1000, 1100, "ls"), tool(1000, 1300, "make"), call(2000, 3000, 200)
    trace = read(tmp_path, call(0, 1000), *told)
    assert trace.scripts[0].sessions[0].steps[0].tool == "make"
    assert trace.notes == ["1 steps with several tools, named by the longest"]


def test_without_tool_events_the_answer_names_the_tool(tmp_path: Path) -> None:
    finish = {"finish_reason": "tool_calls", "tool_calls": [{"name": "search"}]}
    (root,) = sessions(tmp_path, call(0, 1000, finish_reason_metadata=finish))
    assert root.steps[0].tool == "search"


def test_events_that_tell_nothing_usable_are_counted(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        call(1000, 2000),
        tool(10, 20),
        event("tool_start", 5, tool={"tool_class": "x"}),
        event("request_payload", 5),
    )
    assert set(trace.notes) == {
        "1 tools before the first step of their session, left out",
        "1 tools that were begun and never ended, left out",
        "1 events of other types, which tell no call and no tool",
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (call(5, 6, -1), "request.input_tokens is -1: Expected `int` >= 1"),
        (call(5, 6, input_tokens=None), "request.input_tokens is missing"),
        (call(5, 6, output_tokens=None), "request.output_tokens is missing"),
        (event("request_end", 5), "request: Object missing required field `request`"),
        (event("tool_end", 5, tool={}), "tool: Object missing required field `tool_class`"),
        (event("tool_end", 5), "tool: Object missing required field `tool`"),
        (
            event("tool_end", 5, agent_context=None, tool={"tool_class": "x"}),
            "agent_context: tools need one with a session",
        ),
        (
            call(5, 6, replay=replay(100, [1], block=20)),
            "request.replay.trace_block_size is 20: Expected 10 as in the lines before",
        ),
        ({"event": 5, "schema": "dynamo.agent.trace.v1"}, "Expected `object`, got `int`"),
    ],
)
def test_a_bad_event_is_named_and_the_others_are_kept(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    good = call(0, 4, replay=replay(100, [*range(10)]))
    trace = read(tmp_path, good, bad)
    assert trace.problems == [Problem(2, reason)]
    assert len(trace.scripts[0].sessions[0].steps) == 1


def test_sessions_in_a_circle_are_a_problem(tmp_path: Path) -> None:
    events = [
        call(0, 1, session="a", parent="b"),
        call(2, 3, session="b", parent="a"),
        call(0, 1) | {"agent_context": {"session_id": "good"}},
    ]
    trace = read(tmp_path, *events)
    assert [script.id for script in trace.scripts] == ["good"]
    assert [problem.line for problem in trace.problems] == [1]


def test_only_times_that_are_known_are_written(tmp_path: Path) -> None:
    step = StepScript(kept_tokens=0, new_tokens=130, output_tokens=3, tool="bash")
    script = WorkflowScript(id="w", sessions=(SessionScript(steps=(step,)),), agent_type="t")
    path = tmp_path / "t.jsonl"
    write_scripts(path, [script], to="dynamo")
    request, ended = map(json.loads, path.read_text().splitlines())
    assert request == {
        "schema": "dynamo.agent.trace.v1",
        "event_type": "request_end",
        "event_time_unix_ms": 0,
        "event_source": "dynamo",
        "agent_context": {"session_type_id": "t", "session_id": "w", "trajectory_id": "w/0"},
        "request": {
            "request_id": "w/0/0",
            "model": "unknown",
            "input_tokens": 130,
            "output_tokens": 3,
            "request_received_ms": 0,
            "replay": {
                "trace_block_size": 64,
                "input_length": 130,
                "input_sequence_hashes": [0, 1, 2],
            },
        },
    }
    assert ended["tool"] == {
        "tool_call_id": "w/0/0/tool",
        "tool_class": "bash",
        "started_at_unix_ms": 0,
        "ended_at_unix_ms": 0,
        "duration_ms": 0,
    }
    write_scripts(path, [script], to="dynamo", times={"w": (((5000, 9000),),)})
    told = json.loads(path.read_text().splitlines()[0])
    assert (told["event_time_unix_ms"], told["request"]["total_time_ms"]) == (9, 4)


names = st.sampled_from(["a", "b", "c"])
calls = st.builds(
    lambda start, length, session, parent, blocks: call(
        start,
        start + length,
        len(blocks) * 10 + 5,
        session=session,
        parent=parent,
        replay=replay(len(blocks) * 10 + 5, [*blocks, 99]),
    ),
    st.integers(0, 50),
    st.integers(0, 50),
    names,
    st.none() | names,
    st.lists(st.integers(0, 3), max_size=6),
)
tools = st.builds(lambda a, b: tool(min(a, b), max(a, b)), st.integers(0, 60), st.integers(0, 60))


@given(st.lists(calls | tools, min_size=1, max_size=9))
def test_any_events_give_scripts_that_keep_the_laws(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict[str, Any]]
) -> None:
    """Every call is played or its session is a problem."""
    good = call(0, 1) | {"agent_context": {"session_id": "good"}}
    trace = read(tmp_path_factory.mktemp("trace"), *events, good)
    num_calls = sum("request" in one for one in events) + 1
    played = sum(script.num_steps for script in trace.scripts)
    assert played == num_calls or trace.problems
