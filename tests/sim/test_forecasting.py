"""The evaluation of forecasts: no peeking, honest gaps in the table, and better than naive."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from tests.shared_data import shared_data as shared_data

from saga.sim.forecasting import GRID, PIT_BINS, UNTOLD, evaluate
from saga.traces import read_scripts
from saga.traces.script import SessionScript, StepScript, WorkflowScript

SECOND = 1_000_000


def workflow(name: int, tools: list[str | None], times_s: list[float]) -> WorkflowScript:
    steps = tuple(
        StepScript(
            kept_tokens=0,
            new_tokens=100,
            output_tokens=50,
            tool=tool,
            tool_us=round(seconds * SECOND) if tool is not None else 0,
            gap_us=round(seconds * SECOND),
        )
        for tool, seconds in zip(tools, times_s, strict=True)
    )
    return WorkflowScript(id=str(name), sessions=(SessionScript(steps=steps),))


def some(number: int, seed: int = 1) -> list[WorkflowScript]:
    """Search, then run it twice as often as look at it; runs take long."""
    chance, made = Random(seed), []
    for name in range(number):
        tools: list[str | None] = []
        for _ in range(chance.randint(3, 9)):
            tools += ["search", "run" if chance.random() < 0.7 else "look"]
        middle = {"search": -1.0, "run": 3.0, "look": -2.0}
        times = [chance.lognormvariate(middle[tool or ""], 0.6) for tool in tools]
        made.append(workflow(name, tools, times))
    return made


def test_forecasts_are_good_calibrated_and_better_than_naive_ones() -> None:
    found = evaluate(some(250))
    ours, naive = found.ours, found.naive
    assert ours["next_tool_top1"] == pytest.approx(0.85, abs=0.03), "1 and 0.7 in turns"
    assert (ours["return_within_2x"] or 0) >= 0.7, "of a log-normal with this sigma: 0.75"
    for percent in (50, 80, 95):
        assert ours[f"coverage_{percent}"] == pytest.approx(percent / 100, abs=0.03)
    assert (ours["crps_s"] or 0) <= 1.03 * (naive["crps_s"] or 0)
    assert sum(found.pit) == found.counts["crps_s"]
    assert max(found.pit) <= 1.25 * sum(found.pit) / PIT_BINS


def test_pure_chance_cannot_be_foretold() -> None:
    """Whoever scores better than this has seen the answer."""
    chance = Random(3)
    workflows = [
        workflow(
            number,
            [chance.choice("abcd") for _ in range(10)],
            [10 ** chance.uniform(-2, 3) for _ in range(10)],
        )
        for number in range(100)
    ]
    found = evaluate(workflows)
    for figures in (found.ours, found.naive):
        assert figures["next_tool_top1"] == pytest.approx(0.25, abs=0.05)
        assert (figures["return_within_2x"] or 0) < 0.2


def test_what_was_learned_before_helps_and_is_not_scored() -> None:
    cold, warm = evaluate(some(10, seed=2)), evaluate(some(10, seed=2), warm=some(100))
    assert warm.counts == {
        **cold.counts,
        "remaining_steps_rel_err": warm.counts["output_within_2x"],
    }
    assert (warm.ours["next_tool_top1"] or 0) > (cold.ours["next_tool_top1"] or 0)
    assert (warm.ours["crps_s"] or 0) < (cold.ours["crps_s"] or 0)


def test_what_a_trace_cannot_tell_is_null_with_a_reason() -> None:
    silent = [workflow(number, [None] * 4, [0.0] * 4) for number in range(5)]
    document = evaluate(silent).document()
    untold = {name for name in UNTOLD if document[name] is None}
    assert untold == set(UNTOLD) - {"output_within_2x", "remaining_steps_rel_err"}
    assert document["reasons"].keys() == untold
    assert document["naive"]["next_tool_top1"] is None


def test_the_grid_is_symmetric() -> None:
    assert [round(1 - level, 9) for level in reversed(GRID)] == [round(one, 9) for one in GRID]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("miniswe_deepseek", {"next_tool_top1": 0.42, "output_within_2x": 0.71}),
        ("thunder_sweagent_glm45", {"next_tool_top1": 0.60, "output_within_2x": 0.53}),
        ("tau2_bench", {"next_tool_top1": 0.56, "output_within_2x": 0.66}),
    ],
)
def test_real_traces(shared_data: Path, name: str, least: dict[str, float]) -> None:
    found = evaluate(read_scripts(shared_data / f"{name}.jsonl.gz").scripts)
    for figure, value in least.items():
        assert (found.ours[figure] or 0) >= value
    for percent in (50, 80, 95):
        assert found.ours[f"coverage_{percent}"] == pytest.approx(percent / 100, abs=0.03)
