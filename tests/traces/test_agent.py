import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shared_data import shared_data

from saga.traces import SessionScript, TraceFile, WorkflowScript, check_script, read_scripts

__all__ = ["shared_data"]


def step(prompt: int, output: int = 10, **fields: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "output_tokens": output, **fields}


def read(folder: Path, *tasks: dict[str, Any]) -> TraceFile:
    path = folder / "swe_agent.jsonl"
    named = ({"task": str(index), **task} for index, task in enumerate(tasks))
    path.write_text("\n".join(map(json.dumps, named)))
    return read_scripts(path)


def session(folder: Path, *steps: dict[str, Any], **fields: Any) -> SessionScript:
    trace = read(folder, {"steps": steps, **fields})
    assert not trace.problems
    check_script(trace.scripts[0])
    return trace.scripts[0].sessions[0]


def kept(folder: Path, *steps: dict[str, Any], **fields: Any) -> list[int]:
    return [one.kept_tokens for one in session(folder, *steps, **fields).steps]


def test_a_prompt_that_repeats_the_output_keeps_the_whole_context(tmp_path: Path) -> None:
    first, second = step(100), step(150, kept_tokens=100, new_tokens=50)
    played = session(tmp_path, first, second).steps[1]
    assert (played.kept_tokens, played.new_tokens) == (110, 40)


def test_a_prompt_too_short_for_the_output_does_not_repeat_it(tmp_path: Path) -> None:
    assert kept(tmp_path, step(100), step(105, kept_tokens=100)) == [0, 100]


def test_a_prompt_that_leaves_the_previous_one_early_repeats_no_output(tmp_path: Path) -> None:
    assert kept(tmp_path, step(100), step(300, kept_tokens=60)) == [0, 60]


def test_every_prompt_computes_at_least_one_token(tmp_path: Path) -> None:
    assert kept(tmp_path, step(100), step(110, kept_tokens=100)) == [0, 109]


def test_whole_blocks_of_the_previous_prompt_stand_for_all_of_it(tmp_path: Path) -> None:
    """The last block of a prompt is not full, so that no hash of it can come again."""
    steps = (
        step(100, kept_tokens=0, keep_prev_blocks=0),
        step(200, kept_tokens=64, keep_prev_blocks=1),
        step(300, kept_tokens=192, keep_prev_blocks=1),  # the rest is from an older prompt
    )
    assert kept(tmp_path, *steps, block_size=64) == [0, 110, 64]


def test_more_than_the_previous_context_cannot_be_kept(tmp_path: Path) -> None:
    trace = read(tmp_path, {"steps": [step(50), step(900, kept_tokens=500)]})
    assert trace.scripts[0].sessions[0].steps[1].kept_tokens == 60
    assert "1 prompts sharing more with an older prompt than the previous" in trace.notes[0]


def test_unknown_reuse_keeps_the_declared_prefix_or_nothing(tmp_path: Path) -> None:
    steps = (step(100), step(90, reset=True))
    assert kept(tmp_path, *steps) == [0, 0]
    assert kept(tmp_path, *steps, tool_tokens=20, system_tokens=10) == [30, 30]


def test_no_output_is_played_as_one_token(tmp_path: Path) -> None:
    trace = read(tmp_path, {"steps": [step(9, 0)]})
    assert trace.scripts[0].sessions[0].steps[0].output_tokens == 1
    assert trace.notes == ["1 steps without output, played with 1 token"]


@pytest.mark.parametrize(
    ("first", "second", "gap_us"),
    [
        ({"gap_seconds": 0.5, "start": 0, "llm_seconds": 1}, {"start": 9}, 500_000),
        ({"start": 1, "llm_seconds": 3, "tool_seconds": 1}, {"start": 9}, 5_000_000),
        ({"start": 1, "llm_seconds": 12, "tool_seconds": 1}, {"start": 9}, 1_000_000),
        ({"start": 1, "user_seconds": 50}, {"start": 9}, 8_000_000),
        ({"tool_seconds": 1, "user_seconds": 2.5}, {}, 3_500_000),
        ({"gap_to_next_start_s": 2}, {}, 2_000_000),
        ({"gap_to_next_call_end_s": 4}, {}, 4_000_000),
        ({"start": 1}, {"start": 9}, 8_000_000),
        ({"start": 1, "llm_seconds": 1}, {}, 0),
        ({}, {}, 0),
    ],
)
def test_return_time_comes_from_the_best_field(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], gap_us: int
) -> None:
    assert session(tmp_path, step(9, **first), step(20, **second)).steps[0].gap_us == gap_us


def test_what_is_not_known_about_gaps_is_counted(tmp_path: Path) -> None:
    whole = step(1, gap_to_next_start_s=2)
    trace = read(tmp_path, {"steps": [step(1), whole, whole, step(1)]})
    assert "2 gaps known only with an LLM call inside them (upper bounds)" in trace.notes
    assert "1 gaps unknown, played as 0" in trace.notes


def test_time_in_the_tool_is_a_part_of_the_gap(tmp_path: Path) -> None:
    first = step(9, tool="bash", gap_seconds=2, tool_seconds=1.5)
    late = step(9, gap_seconds=1, tool_seconds=1.5)
    steps = session(tmp_path, first, late, step(9, tool="submit", tool_seconds=3)).steps
    assert [(one.tool, one.tool_us, one.gap_us) for one in steps] == [
        ("bash", 1_500_000, 2_000_000),
        (None, 1_000_000, 1_000_000),
        ("submit", 0, 0),
    ]


def test_a_call_that_starts_before_the_one_before_it_is_a_problem(tmp_path: Path) -> None:
    steps = [step(9, start=5), step(9), step(9, start=4)]
    trace = read(tmp_path, {"steps": [step(9)]}, {"steps": steps})
    (problem,) = trace.problems
    assert problem.reason == "steps[2].start is 4.0, before the previous 5.0"


def test_the_agent_type_is_kind_or_domain_or_the_name_of_the_file(tmp_path: Path) -> None:
    tasks: tuple[dict[str, Any], ...] = (
        {"kind": "web"},
        {"domain": "airline"},
        {},
        {"hash_scope": "local"},
    )
    trace = read(tmp_path, *({**task, "steps": [step(1)]} for task in tasks))
    assert [one.agent_type for one in trace.scripts] == ["web", "airline", *2 * ["swe_agent"]]


def test_tool_and_system_tokens_name_a_shared_prefix(tmp_path: Path) -> None:
    shared = {"tool_tokens": 20, "system_tokens": 10}
    one = session(tmp_path, step(100), **shared)
    assert (one.prefix, one.prefix_tokens, one.steps[0].kept_tokens) == ("weka/20+10", 30, 30)
    short = session(tmp_path, step(30), **shared)
    assert (short.prefix, short.prefix_tokens, short.steps[0].kept_tokens) == (None, 0, 0)


def parent_with(folder: Path, *agents: tuple[float, float]) -> WorkflowScript:
    """Calls end at 2, 12 and 32 s; the gaps are 8, 18 and 0 s; agents by their end and duration."""
    trace = read(
        folder,
        {
            "steps": [
                step(100, start=0, llm_seconds=2, tool_seconds=8),
                step(200, start=10, llm_seconds=2, tool_seconds=18),
                step(300, start=30, llm_seconds=2),
            ],
            "subagents": [
                {"start": end, "duration_s": duration, "steps": [step(7)]}
                for end, duration in agents
            ],
        },
    )
    check_script(trace.scripts[0])
    return trace.scripts[0]


def test_a_parent_waits_for_the_longest_of_its_subagents(tmp_path: Path) -> None:
    root, *children = parent_with(tmp_path, (20, 7.5), (22, 10)).sessions
    assert [(c.parent, c.spawn_step, c.delay_us, c.blocking) for c in children] == [
        (0, 1, 0, True),
        (0, 1, 500_000, True),
    ]
    # The gap of 18 s was 10 s for the sub-agents, and the tool is what is left of it.
    assert [one.gap_us for one in root.steps] == [8_000_000, 8_000_000, 0]
    assert root.steps[1].tool_us == 8_000_000


@pytest.mark.parametrize(("end", "duration", "spawn_step"), [(31, 18, 1), (99, 60, 2)])
def test_a_subagent_that_outlives_the_gap_is_not_waited_for(
    tmp_path: Path, end: float, duration: float, spawn_step: int
) -> None:
    root, child = parent_with(tmp_path, (end, duration)).sessions
    assert (child.spawn_step, child.blocking) == (spawn_step, False)
    assert [one.gap_us for one in root.steps] == [8_000_000, 18_000_000, 0]


def test_subagents_need_the_times_of_their_parent(tmp_path: Path) -> None:
    agents = [{"start": 1, "duration_s": 1, "steps": [step(7)]}]
    trace = read(tmp_path, {"steps": [step(1)]}, {"steps": [step(1)], "subagents": agents})
    assert [problem.reason for problem in trace.problems] == [
        "steps[0].start is missing, sub-agents cannot be placed"
    ]


numbers = st.none() | st.integers(0, 500)
recorded_steps = st.builds(
    step,
    st.integers(1, 1000),
    st.integers(0, 300),
    kept_tokens=numbers,
    keep_prev_blocks=st.none() | st.integers(0, 20),
    reset=st.booleans(),
    gap_seconds=numbers,
    tool_seconds=numbers,
    user_seconds=numbers,
    llm_seconds=numbers,
)


@given(
    st.lists(recorded_steps, min_size=1, max_size=6),
    st.sampled_from([1, 64]),
    st.integers(0, 300),
)
def test_any_task_gives_a_script_with_the_recorded_sizes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[str, Any]], block: int, shared: int
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    played = session(folder, *steps, block_size=block, tool_tokens=shared).steps
    assert [one.prompt_tokens for one in played] == [one["prompt_tokens"] for one in steps]
    assert [one.output_tokens for one in played] == [max(one["output_tokens"], 1) for one in steps]


REUSE = {
    "miniswe_deepseek": 0.979,
    "thunder_sweagent_glm45": 0.960,
    "weka_claude_code": 0.963,
}
"""Shares of prompt tokens kept from earlier prompts, as the data's own README tells them."""


@pytest.mark.parametrize("name", REUSE)
def test_real_traces_are_read_without_a_problem(shared_data: Path, name: str) -> None:
    trace = read_scripts(shared_data / f"{name}.jsonl.gz", strict=True)
    kept_tokens = prompt_tokens = 0
    for script in trace.scripts:
        check_script(script)
        for one in script.sessions:
            for before, after in pairwise(one.steps):
                prompt_tokens += after.prompt_tokens
                kept_tokens += min(after.kept_tokens, before.prompt_tokens)
            prompt_tokens += one.steps[0].prompt_tokens
    # Without the outputs, which that count leaves out; part of each source is here, hence the room.
    assert kept_tokens / prompt_tokens == pytest.approx(REUSE[name], abs=0.004)


def test_subagents_of_the_real_trace_fit_into_the_gaps_of_their_parents(shared_data: Path) -> None:
    scripts = read_scripts(shared_data / "weka_claude_code.jsonl.gz").scripts
    children = [child for script in scripts for child in script.sessions[1:]]
    blocking = [child for child in children if child.blocking]
    assert (len(children), len(blocking)) == (32, 30)
    assert max(child.delay_us for child in blocking) < 2_000_000
