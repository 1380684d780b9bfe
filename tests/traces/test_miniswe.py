import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.traces import Problem, StepScript, TraceFile, check_script, read_scripts

NOW = 1_775_795_494.0


def said(text: str = "x" * 400, role: str = "user", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **fields}


def answer(at: float | None = None, usage: tuple[int, int] | None = None, **extra: Any) -> Any:
    """Of the second version of the format."""
    if usage is not None:
        sizes = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
        extra["response"] = {"usage": sizes} | extra.get("response", {})
    if at is not None:
        extra["timestamp"] = NOW + at
    return said("y" * 40, "assistant", extra=extra)


def seen(at: float) -> Any:
    return said("z" * 80, "tool", extra={"timestamp": NOW + at, "returncode": 0})


def read(folder: Path, *messages: Any, indent: int | None = 2, **fields: Any) -> TraceFile:
    told = {"info": {"mini_version": "2.2.7"}, "messages": messages, **fields}
    path = folder / "astropy__astropy-1.traj.json"
    path.write_text(json.dumps(told, indent=indent))
    trace = read_scripts(path, strict=True)
    check_script(trace.scripts[0])
    return trace


def steps(folder: Path, *messages: Any) -> tuple[StepScript, ...]:
    return read(folder, *messages).scripts[0].sessions[0].steps


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_a_trajectory_is_a_workflow_of_one_session(tmp_path: Path, indent: int | None) -> None:
    """The file is one document, over one line or many."""
    trace = read(
        tmp_path,
        said("s", "system"),
        said(),
        answer(5, (1000, 50), actions=[{"command": "cd /testbed && grep -r x ."}]),
        seen(7.5),
        answer(9, (1200, 60), actions=[{"command": "python a.py"}, {"command": "ls"}]),
        seen(10),
        seen(12),
        answer(20, (1300, 5)),
        said("", "exit"),
        indent=indent,
        trajectory_format="mini-swe-agent-1.1",
    )
    (script,) = trace.scripts
    assert (trace.kind, script.id) == ("mini-swe-agent", "astropy__astropy-1")
    assert script.sessions[0].steps == (
        StepScript(
            kept_tokens=0,
            new_tokens=1000,
            output_tokens=50,
            tool="grep",
            tool_us=2_500_000,
            gap_us=2_500_000,
        ),
        StepScript(
            kept_tokens=1050,
            new_tokens=150,
            output_tokens=60,
            tool="python",
            tool_us=3_000_000,
            gap_us=3_000_000,
        ),
        StepScript(kept_tokens=1260, new_tokens=40, output_tokens=5),
    )
    assert (trace.notes, trace.times, script.submitted_us) == ([], {}, None)


def test_the_first_version_kept_times_beside_the_text(tmp_path: Path) -> None:
    act = "THOUGHT\n```bash\nmake test\n```"
    usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 9}}
    trace = read(
        tmp_path,
        said(timestamp=NOW),
        said(act, "assistant", timestamp=NOW + 2, extra={"response": usage}),
        said(timestamp=NOW + 5),
        said("done", "assistant", timestamp=NOW + 6, extra={"response": usage}),
        instance_id="task-1",
    )
    (script,) = trace.scripts
    first, last = script.sessions[0].steps
    assert (script.id, script.submitted_us) == ("task-1", 0)
    assert (first.tool, first.gap_us, last.tool) == ("make", 3_000_000, None)
    start = round(NOW * 1e6)
    assert trace.times == {
        "task-1": (((start, start + 2_000_000), (start + 5_000_000, start + 6_000_000)),)
    }


def test_the_first_call_begins_when_its_answer_was_made(tmp_path: Path) -> None:
    trace = read(tmp_path, said(), answer(5, (9, 1), response={"created": NOW}), seen(6))
    start = round(NOW * 1e6)
    assert trace.times == {"astropy__astropy-1": (((start, start + 5_000_000),),)}


def test_responses_name_sizes_differently(tmp_path: Path) -> None:
    usage = {"usage": {"input_tokens": 70, "output_tokens": 5}}
    told = {"object": "response", "output": [], "extra": {"response": usage}}
    (step,) = steps(tmp_path, said(), told)
    assert (step.prompt_tokens, step.output_tokens) == (70, 5)


def test_without_sizes_the_text_is_counted(tmp_path: Path) -> None:
    trace = read(tmp_path, said(), answer(), said("z" * 80), answer())
    told = [(one.prompt_tokens, one.output_tokens) for one in trace.scripts[0].sessions[0].steps]
    assert told == [(100, 10), (130, 10)]
    assert trace.notes == [
        "2 prompts sized by their text, 4 characters a token",
        "1 gaps unknown, played as 0",
    ]


@pytest.mark.parametrize(
    ("command", "tool"),
    [
        ("ls -la", "ls"),
        ("  cd /a/b ;  python3 x.py", "python3"),
        ("KEY=secret curl http://x", "bash"),
        ("(echo x)", "bash"),
        ("echo", "echo"),
    ],
)
def test_a_tool_is_the_program_that_is_plain_to_see(
    tmp_path: Path, command: str, tool: str
) -> None:
    (step,) = steps(tmp_path, said(), answer(1, (9, 1), actions=[{"command": command}]))
    assert step.tool == tool


def test_messages_without_a_time_end_no_gap(tmp_path: Path) -> None:
    first, _ = steps(tmp_path, said(), answer(1, (9, 1)), seen(3), said(), answer(5, (90, 1)))
    assert first.gap_us == 2_000_000


def test_a_tool_call_without_a_command_names_its_function(tmp_path: Path) -> None:
    told = answer(1, (9, 1)) | {"tool_calls": [{"function": {"name": "submit"}}]}
    assert steps(tmp_path, said(), told)[0].tool == "submit"


def test_context_that_was_dropped_is_not_kept(tmp_path: Path) -> None:
    trace = read(tmp_path, said(), answer(1, (900, 9)), seen(2), answer(3, (500, 9)))
    assert [step.kept_tokens for step in trace.scripts[0].sessions[0].steps] == [0, 0]
    assert trace.notes == [
        "1 prompts shorter than the context before, played as keeping nothing of it"
    ]


def test_lines_of_many_trajectories_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    good = {"info": {}, "messages": [said(), answer(1, (9, 1))]}
    bad = {"info": {}, "messages": [said()]}
    odd = {"info": {}, "messages": [said(), answer(1, (0, 1))]}
    path.write_text("\n".join(map(json.dumps, [good, bad, good, odd])))
    trace = read_scripts(path)
    assert [script.id for script in trace.scripts] == ["all", "all-3"]
    assert trace.problems == [
        Problem(2, "messages: none is an assistant's"),
        Problem(4, "messages[1].extra.response.usage.prompt_tokens is 0: Expected `int` >= 1"),
    ]


messages = st.one_of(
    st.builds(said, st.text(max_size=9), st.sampled_from(["user", "tool", "exit"])),
    st.builds(seen, st.floats(0, 100)),
    st.builds(
        answer,
        st.none() | st.floats(0, 100),
        st.none() | st.tuples(st.integers(1, 99), st.integers(0, 9)),
        actions=st.lists(st.fixed_dictionaries({"command": st.text(max_size=9)}), max_size=2),
    ),
)


@given(st.lists(messages, max_size=9))
def test_every_answer_is_a_step(
    tmp_path_factory: pytest.TempPathFactory, told: list[dict[str, Any]]
) -> None:
    answers = 1 + sum(one["role"] == "assistant" for one in told)
    trace = read(tmp_path_factory.mktemp("trace"), *told, answer())
    assert trace.scripts[0].num_steps == answers
