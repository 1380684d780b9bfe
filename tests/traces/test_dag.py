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
from saga.traces.text import common_chars, filler, tokens_of


def turn(text: str = "x" * 400, output: int = 10, **fields: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": text}]
    return {"messages": said, "max_tokens": output, "extra": {"ignore_eos": True}, **fields}


def conversation(name: str, *turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"session_id": name, "turns": turns or (turn(),), **fields}


def read(folder: Path, *conversations: dict[str, Any]) -> TraceFile:
    return read_lines(folder / "dag.jsonl", map(json.dumps, conversations))


def workflow(folder: Path, *conversations: dict[str, Any]) -> WorkflowScript:
    return only(read(folder, *conversations))


def test_turns_add_to_the_context(tmp_path: Path) -> None:
    trace = read(tmp_path, conversation("a", turn(delay=5), turn("y" * 41, delay=250.5)))
    (script,) = trace.scripts
    assert (trace.kind, script.id, script.submitted_us) == ("aiperf-dag", "a", None)
    assert script.sessions[0].steps == (
        StepScript(kept_tokens=0, new_tokens=100, output_tokens=10, gap_us=250_500),
        StepScript(kept_tokens=110, new_tokens=11, output_tokens=10),
    )
    assert trace.notes == ["2 prompts sized by their text, 4 characters a token"]


def test_a_fork_goes_on_from_the_context_of_its_parent(tmp_path: Path) -> None:
    background = {"child": "c", "background": True}
    root, going, last = workflow(
        tmp_path,
        conversation("a", turn(forks=[background]), turn(forks=["b"])),
        conversation("b", turn(delay=20)),
        conversation("c"),
    ).sessions
    assert [going.spawn_step, last.spawn_step] == [0, 1]
    assert (going.forked_tokens, last.forked_tokens) == (110, 220)
    assert [step.kept_tokens for step in last.steps] == [220]
    assert (last.delay_us, last.blocking, going.blocking) == (20_000, False, False)
    assert len(root.steps) == 2


def test_a_spawn_is_waited_for_where_it_joins(tmp_path: Path) -> None:
    late = {"children": ["c"], "join_at": 2}
    told = conversation("a", turn(spawns=["b", late]), turn(), turn(spawns=["d"]))
    trace = read(tmp_path, told, *map(conversation, "bcd"))
    _, *children = trace.scripts[0].sessions
    assert [(one.spawn_step, one.blocking) for one in children] == [
        (0, True),
        (0, False),
        (2, False),
    ]
    assert all(one.forked_tokens == one.steps[0].kept_tokens == 0 for one in children)
    assert (
        "1 sub-agents joined later than at the next step, played as not waited for" in trace.notes
    )


def test_what_is_spawned_twice_is_two_sessions(tmp_path: Path) -> None:
    script = workflow(
        tmp_path,
        conversation("a", turn(spawns=["b"]), turn(spawns=["b"]), turn()),
        conversation("b", turn(), turn(spawns=["c"])),
        conversation("c"),
    )
    assert [one.parent for one in script.sessions] == [None, 0, 0, 1, 2]


def test_isolated_turns_keep_what_their_text_shares(tmp_path: Path) -> None:
    turns = turn("a" * 400), turn("a" * 400 + "b" * 60), turn("a" * 200 + "c" * 400)
    told = conversation("a", *turns, context_mode="message_array_with_responses")
    steps = workflow(tmp_path, told).sessions[0].steps
    assert [(step.kept_tokens, step.prompt_tokens) for step in steps] == [
        (0, 100),
        (110, 115),
        (50, 150),
    ]


def test_the_same_system_prompt_is_a_common_prefix(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "s" * 80}, {"role": "user", "content": "u" * 40}]
    trace = read(tmp_path, *(conversation(name, turn(messages=said)) for name in "ab"))
    one, other = (script.sessions[0] for script in trace.scripts)
    assert one.prefix == other.prefix is not None
    assert (one.prefix_tokens, one.steps[0].kept_tokens, one.steps[0].new_tokens) == (20, 20, 10)


def test_all_that_is_sent_counts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "t" * 40}, {"type": "image_url", "image_url": {"url": "x"}}]
    calls = [{"id": "1", "function": {"name": "f"}}]
    said = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    steps = (
        workflow(tmp_path, conversation("a", turn(messages=said, tools=tools))).sessions[0].steps
    )
    length = 40 + len(json.dumps(calls)) + len(json.dumps(tools))
    assert steps[0].prompt_tokens == tokens_of(length)


def test_what_the_turns_leave_open_is_counted(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        conversation("a", turn(extra=None), turn(max_tokens=None), pre_session_spawns=["b"]),
        conversation("b"),
    )
    assert set(trace.notes[1:]) == {
        "1 outputs known only by max_tokens (upper bounds)",
        "1 outputs without max_tokens, played with 1 token",
        "1 sub-agents that began before a step of their parent had ended",
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"session_id": "x", "turns": []}, "turns: a conversation without requests of its own"),
        (conversation("x", orchestrator=True), "turns: a conversation without requests of its own"),
        (conversation("good"), "session_id 'good' was in line 1 already"),
        (conversation("x", turn(delay=-1)), "turns[0].delay is -1: Expected `float` >= 0.0"),
        (
            conversation("x", turn(messages=[])),
            "turns[0].messages: Expected `array`",
        ),
        (conversation("x", turn(max_tokens=True)), "turns[0].max_tokens is True: Expected"),
        (conversation("x", turn(forks=["good"]), turn()), "turns[0].forks: only a background fork"),
        (
            conversation("x", turn(spawns=[{"children": ["good"], "join_at": 2}]), turn()),
            "turns[0].spawns: join_at is 2: Expected 1 to 1",
        ),
        (conversation("x", turn(spawns=["gone"])), "session 'gone' is not in the trace"),
    ],
)
def test_a_bad_conversation_is_named_and_the_others_are_kept(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    trace = read(tmp_path, conversation("good"), bad)
    (problem,) = trace.problems
    assert problem.line == 2
    assert problem.reason.startswith(reason)
    assert [script.id for script in trace.scripts] == ["good"]


def test_conversations_that_spawn_each_other_are_problems(tmp_path: Path) -> None:
    circle = conversation("a", turn(spawns=["b"])), conversation("b", turn(spawns=["a"]))
    into = conversation("c", turn(spawns=["a"]))
    trace = read(tmp_path, conversation("good"), *circle, into)
    assert trace.problems == [Problem(4, "session 'a' is its own ancestor")]
    alone = read(tmp_path, conversation("good"), *circle)
    assert [problem.line for problem in alone.problems] == [2, 3]


def test_a_flood_of_sessions_is_refused(tmp_path: Path) -> None:
    """Each spawns the next one twice."""
    levels = [
        conversation(f"{n}", turn(spawns=[f"{n + 1}"]), turn(spawns=[f"{n + 1}"]))
        for n in range(30)
    ]
    trace = read(tmp_path, conversation("good"), *levels, conversation("30"))
    assert "more than 10000 sessions follow from '0'" in {one.reason for one in trace.problems}


def test_what_is_written_is_as_long_as_the_script_says(tmp_path: Path) -> None:
    first = StepScript(kept_tokens=0, new_tokens=30, output_tokens=7, gap_us=1500)
    again = StepScript(kept_tokens=37, new_tokens=3, output_tokens=1)
    child = SessionScript(steps=(again,), parent=0, forked_tokens=37, delay_us=500)
    script = WorkflowScript(id="w", sessions=(SessionScript(steps=(first, again)), child))
    path = tmp_path / "dag.jsonl"
    write_scripts(path, [script], to="aiperf-dag")
    root, fork = map(json.loads, path.read_text().splitlines())
    assert list(root) == list(fork) == ["session_id", "turns"]
    assert [len(one["messages"][0]["content"]) for one in root["turns"]] == [120, 12]
    assert root["turns"][0]["forks"] == [{"child": "w/1", "background": True}]
    assert (root["turns"][1]["delay"], fork["turns"][0]["delay"]) == (1.5, 0.5)
    assert [one["max_tokens"] for one in root["turns"]] == [7, 1]


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_common_chars_are_those_that_both_begin_with(head: str, one: str, other: str) -> None:
    first, second = head + one, head + other
    common = common_chars(first, second)
    assert common >= len(head)
    assert first[:common] == second[:common]
    ends = common == min(len(first), len(second))
    assert ends or first[common] != second[common]


@given(st.text(max_size=9), st.integers(1, 500))
def test_filler_has_its_size(key: str, tokens: int) -> None:
    assert tokens_of(len(filler(key, tokens))) == tokens


names = st.sampled_from(["a", "b", "c"])
spawned = names | st.builds(
    lambda name, at: {"children": [name], "join_at": at}, names, st.integers(0, 3)
)
forked = names | st.builds(lambda name: {"child": name, "background": True}, names)
turns = st.builds(
    lambda text, spawns, forks: turn(text, spawns=spawns, forks=forks),
    st.text(max_size=9),
    st.lists(spawned, max_size=2),
    st.lists(forked, max_size=1),
)


@given(st.lists(st.builds(conversation, names, turns, turns), max_size=4))
def test_any_conversations_give_scripts_that_keep_the_laws(
    tmp_path_factory: pytest.TempPathFactory, told: list[dict[str, Any]]
) -> None:
    trace = read(tmp_path_factory.mktemp("trace"), conversation("good"), *told)
    assert "good" in {script.id for script in trace.scripts}
    assert len(trace.scripts) + len(trace.problems) > 1 or not told
