import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.traces.strategies import workflows

from saga.traces import (
    Problem,
    SessionScript,
    StepScript,
    TraceFile,
    WorkflowScript,
    trace_stats,
)

SECOND = 1_000_000


def trace(*scripts: WorkflowScript) -> TraceFile:
    return TraceFile(
        path=Path("some.jsonl"),
        kind="saga",
        scripts=list(scripts),
        problems=[Problem(3, "broken")],
        notes=["a note"],
    )


def workflow(name: str, at_s: int | None, tool_s: int) -> WorkflowScript:
    """Two steps behind a shared prefix; 40 of 100 and 120 of 200 prompt tokens kept."""
    gap_us = 2 * tool_s * SECOND
    steps = (
        StepScript(
            kept_tokens=40,
            new_tokens=60,
            output_tokens=20,
            tool="ls",
            tool_us=tool_s * SECOND,
            gap_us=gap_us,
        ),
        StepScript(kept_tokens=120, new_tokens=80, output_tokens=10, tool="submit"),
    )
    session = SessionScript(steps=steps, prefix="p", prefix_tokens=40)
    submitted = None if at_s is None else at_s * SECOND
    return WorkflowScript(id=name, sessions=(session,), submitted_us=submitted)


def test_figures_of_a_small_trace() -> None:
    stats = trace_stats(trace(workflow("a", 0, 1), workflow("b", 1, 3), workflow("c", 4, 5)))
    assert stats == {
        "file": "some.jsonl",
        "kind": "saga",
        "workflows": 3,
        "sessions": 3,
        "steps": 6,
        "steps_per_workflow": {"p50": 2, "p90": 2, "max": 2},
        "prompt_tokens": {"p50": 150, "p90": 200},
        "new_tokens": {"p50": 70, "p90": 80},
        "output_tokens": {"p50": 15, "p90": 20},
        "gap_s": pytest.approx({"p50": 6, "p90": 9.2, "p99": 9.92}),
        "tools": [
            {"tool": "ls", "calls": 3, "seconds": pytest.approx({"p50": 3, "p95": 4.8})},
            {"tool": "submit", "calls": 3, "seconds": None},
        ],
        # The first of the three computes the prefix of 40 tokens, the others find it.
        "ideal_reuse": pytest.approx((3 * 160 - 40) / (3 * 300)),
        "arrivals": pytest.approx({"rate_per_s": 0.5, "cv": 0.5}),
        "shared_prefixes": 1,
        "shared_prefix_tokens": {"p50": 40, "p90": 40},
        "problems": 1,
        "notes": ["a note"],
    }


def test_without_times_there_are_no_arrivals() -> None:
    assert trace_stats(trace(workflow("a", None, 1), workflow("b", 1, 1)))["arrivals"] is None


@given(st.lists(workflows(), min_size=1, max_size=4))
def test_any_trace_has_statistics_that_json_can_hold(scripts: list[WorkflowScript]) -> None:
    stats = trace_stats(trace(*scripts))
    assert json.loads(json.dumps(stats, allow_nan=False)) == stats
    assert 0 <= stats["ideal_reuse"] < 1
