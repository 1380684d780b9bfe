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


def row(name: str, prompt: int = 100, session: str = "s", **fields: Any) -> dict[str, Any]:
    sizes = {"input_length": prompt, "output_length": 10}
    return {"request_id": name, "session_id": session, **sizes, **fields}


def read(folder: Path, *rows: dict[str, Any]) -> TraceFile:
    return read_lines(folder / "rows.jsonl", map(json.dumps, rows))


def sessions(folder: Path, *rows: dict[str, Any]) -> tuple[SessionScript, ...]:
    return only(read(folder, *rows)).sessions


def test_a_session_waits_for_its_last_step_and_its_tool(tmp_path: Path) -> None:
    event = {"tool_call_id": "1", "tool_class": "bash", "duration_ms": 2000.0, "status": "ok"}
    trace = read(
        tmp_path,
        row("r1", timestamp=7000.5, prefix_reset=True),
        row("r2", 150, wait_for=["r1"], delay=250.0, tool_wait_ms=2000.0, tool_events=[event]),
        row("other", session="t", timestamp=9000.5),
    )
    script, other = trace.scripts
    assert (trace.kind, script.id, script.agent_type) == ("agentic-mooncake", "s", trace.kind)
    assert (script.submitted_us, other.submitted_us) == (0, 2_000_000)
    assert script.sessions[0].steps == (
        StepScript(
            kept_tokens=0,
            new_tokens=100,
            output_tokens=10,
            tool="bash",
            tool_us=2_000_000,
            gap_us=2_250_000,
        ),
        StepScript(kept_tokens=110, new_tokens=40, output_tokens=10),
    )


def test_other_names_of_the_same_fields_are_known(tmp_path: Path) -> None:
    told = {"input_tokens": 70, "output_tokens": 5}
    (session,) = sessions(
        tmp_path,
        {"request_id": "a", "session_id": "s", "created_time": 5, **told},
        {"request_id": "b", "session_id": "s", "wait_for": ["a"], "delay_ms": 3, **told},
    )
    assert [step.gap_us for step in session.steps] == [3000, 0]


def test_sub_agents_are_spawned_and_joined(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        row("r1", branches=["c1", "i1"]),
        row("c1", session="c", wait_for=["r1"], delay=100),
        row("c2", 150, session="c", wait_for=["c1"]),
        row("i1", session="i", wait_for=["r1"], tool_wait_ms=20),
        row("r2", 150, wait_for=["r1", "c2"], delay=5),
    )
    root, child, idle = trace.scripts[0].sessions
    assert (trace.problems, trace.notes) == ([], [])
    assert (child.parent, child.spawn_step, child.delay_us, child.blocking) == (0, 0, 100_000, True)
    assert (idle.parent, idle.delay_us, idle.blocking) == (0, 20_000, False)
    assert root.steps[0].gap_us == 5000


def test_what_a_script_cannot_say_is_counted(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        row("r1"),
        row("c1", session="c", wait_for=["r1"]),
        row("c2", 150, session="c", wait_for=["c1"]),
        row("r2", 150, wait_for=["r1", "c1"]),
        row("r3", 200, wait_for=["r2", "c2"]),
        row("r4", 250, wait_for=[]),
    )
    assert set(trace.notes) == {
        "1 waits for other requests than these, left out",
        "1 sub-agents joined later than at the next step, played as not waited for",
        "1 steps that do not wait for the one before, played after it",
    }


def test_the_size_of_blocks_follows_from_their_numbers(tmp_path: Path) -> None:
    (session,) = sessions(
        tmp_path,
        row("r1", 1030, hash_ids=[*range(9)]),  # 128 tokens each, or 129 to 128: a part of one
        row("r2", 900, hash_ids=[0, 1, 2, 30, 31, 32, 33, 34], wait_for=["r1"]),
        row("r3", 1500, hash_ids=[0, 1, 2, 30, 31, 32, 33, *range(50, 55)], wait_for=["r2"]),
    )
    assert [step.kept_tokens for step in session.steps] == [0, 3 * 128, 910]


@pytest.mark.parametrize("block", [1, 16, 20, 64, 100, 128, 512, 1024])
def test_published_sizes_of_blocks_are_found(tmp_path: Path, block: int) -> None:
    """Long prompts leave no other; of several a power of two is taken."""
    prompts = [block * 200, block * 201 + 1 if block > 1 else 201]
    rows = [
        row(f"r{n}", prompt, hash_ids=[*range(-(-prompt // block) - 1), 5000 + n],
            wait_for=[f"r{n - 1}"] if n else [])
        for n, prompt in enumerate(prompts)
    ]  # fmt: skip
    (session,) = sessions(tmp_path, *rows)
    assert session.steps[1].kept_tokens == 199 * block


def test_rows_that_fit_no_size_of_a_block_are_problems(tmp_path: Path) -> None:
    trace = read(tmp_path, row("r1", 1000, hash_ids=[1] * 10), row("r2", 1000, hash_ids=[1]))
    reason = (
        "1 hash_ids of 1000 tokens: Expected blocks of 91 to 111 tokens, as in the lines before"
    )
    assert trace.problems == [Problem(2, reason)]


def test_forks_and_prefixes_are_what_first_prompts_share(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        row("r1", 640, hash_ids=[*range(10)]),
        row("c1", 700, session="c", hash_ids=[*range(10), 30], wait_for=["r1"]),
        row("x1", 320, session="x", hash_ids=[0, 1, 2, 40, 41]),
    )
    (root, fork), (other,) = (script.sessions for script in trace.scripts)
    assert fork.forked_tokens == fork.steps[0].kept_tokens == 650
    assert root.prefix == other.prefix == "agentic-mooncake/rows.jsonl/2"
    assert root.steps[0].kept_tokens == other.steps[0].kept_tokens == 192


def test_without_ids_a_prompt_goes_on_if_it_can(tmp_path: Path) -> None:
    trace = read(tmp_path, row("a"), row("b", 200, wait_for=["a"]), row("c", 50, wait_for=["b"]))
    kept = [step.kept_tokens for step in trace.scripts[0].sessions[0].steps]
    assert kept == [0, 110, 0]
    assert trace.notes == [
        "1 prompts shorter than the context before, played as keeping nothing of it"
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("r1"), "request_id 'r1' was in line 1 already"),
        (row("x", 0), "input_length is 0: Expected `int` >= 1"),
        (row("x", input_length=None), "input_length is missing"),
        (row("x", output_length=None), "output_length is missing"),
        (
            row("x", dependencies=[{"request_id": "r1", "trigger": "completion"}]),
            "dependencies: Expected `wait_for`, the later form is not read",
        ),
        (row("x", delay=-1), "delay is -1: Expected `float` >= 0.0"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_kept(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    trace = read(tmp_path, row("r1"), bad)
    assert trace.problems == [Problem(2, reason)]
    assert len(trace.scripts) == 1


def test_a_workflow_that_waits_for_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    trace = read(tmp_path, row("r1"), row("r2", wait_for=["gone"]), row("o", session="o"))
    assert [script.id for script in trace.scripts] == ["o"]
    reason = "request 'r2' waits for 'gone', which is not in the trace"
    assert trace.problems == [Problem(1, reason)]


def test_requests_that_wait_for_each_other_are_problems(tmp_path: Path) -> None:
    rows = row("a", session="a", wait_for=["b"]), row("b", session="b", wait_for=["a"])
    trace = read(tmp_path, row("o", session="o"), *rows)
    assert [problem.line for problem in trace.problems] == [2, 3]
    assert trace.problems[0].reason == "request 'a' waits for itself"


def test_rows_are_written_with_all_that_they_wait_for(tmp_path: Path) -> None:
    step = StepScript(kept_tokens=0, new_tokens=100, output_tokens=10)
    going = StepScript(**{f: getattr(step, f) for f in ("kept_tokens", "new_tokens")},
                       output_tokens=10, tool="bash", tool_us=500, gap_us=2500)  # fmt: skip
    child = SessionScript(steps=(step,), parent=0, delay_us=1000)
    root = SessionScript(steps=(going, step))
    path = tmp_path / "rows.jsonl"
    script = WorkflowScript(id="w", sessions=(root, child), submitted_us=3000)
    write_scripts(path, [script], to="agentic-mooncake")
    first, below, last = map(json.loads, path.read_text().splitlines())
    assert (first["timestamp"], first["branches"]) == (3.0, ["w/1/0"])
    assert (below["session_id"], below["wait_for"], below["delay"]) == ("w/1", ["w/0/0"], 1.0)
    assert last["wait_for"] == ["w/0/0", "w/1/0"]
    assert (last["delay"], last["tool_wait_ms"]) == (2.0, 0.5)
    assert [one["tool_class"] for one in last["tool_events"]] == ["bash"]
    assert [first["prefix_reset"], last["prefix_reset"]] == [True, False]


names = st.sampled_from(["a", "b", "c", "d"])
rows = st.builds(
    lambda name, session, waits, blocks: row(
        name, 64 * len(blocks) + 9, session, wait_for=waits, hash_ids=[*blocks, 77]
    ),
    names,
    names,
    st.lists(names, max_size=2),
    st.lists(st.integers(0, 2), max_size=4),
)


@given(st.lists(rows, max_size=6))
def test_any_rows_give_scripts_that_keep_the_laws(
    tmp_path_factory: pytest.TempPathFactory, told: list[dict[str, Any]]
) -> None:
    """Every request is played, or something is a problem."""
    trace = read(tmp_path_factory.mktemp("trace"), row("good", session="good"), *told)
    assert sum(script.num_steps for script in trace.scripts) == len(told) + 1 or trace.problems
