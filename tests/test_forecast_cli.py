"""``saga forecast eval``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.sim.factory import random_scripts

from saga.cli import main
from saga.sim.forecasting import UNTOLD
from saga.traces import write_scripts


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "scripts.jsonl"
    write_scripts(path, random_scripts(3, 12, rich=True))
    return path


def test_figures_are_printed_and_written(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "found.json"
    assert main(["forecast", "eval", str(trace), "--warm", str(trace), "--json", str(out)]) == 0
    table = capsys.readouterr().out
    document = json.loads(out.read_text())
    for name in UNTOLD:
        assert name in table
        assert document[name] is None or isinstance(document[name], float)
        assert (document[name] is None) == (name in document["reasons"])
        assert name in document["naive"]
    assert 0 < document["update_us"] < 10_000
    assert 0 < document["forecast_us"] < 10_000


def test_what_was_learned_from_a_file_of_another_name_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trace without types of agents: nothing but its tools tells what comes next."""
    step = {"prompt_tokens": 100, "output_tokens": 10, "gap_seconds": 1.0}
    steps = [{**step, "tool": tool} for tool in ("find", "open", "edit", "test")]
    scored, warm, out = (tmp_path / name for name in ("scored.jsonl", "warm.jsonl", "found.json"))
    scored.write_text(json.dumps({"task": "t", "steps": steps}) + "\n")
    tasks = [json.dumps({"task": f"w{number}", "steps": steps}) for number in range(30)]
    warm.write_text("\n".join(tasks) + "\n")
    found = []
    for told in ([], ["--warm", str(warm)]):
        assert main(["forecast", "eval", str(scored), *told, "--json", str(out)]) == 0
        found.append(json.loads(out.read_text())["next_tool_top1"])
    assert found[0] < found[1] == 1.0


def test_a_file_that_cannot_be_read_is_named(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, broken = tmp_path / "missing.jsonl", tmp_path / "broken.jsonl"
    broken.write_text("{}\n")
    for arguments in (
        [str(missing)],
        [str(broken)],
        [str(trace), "--warm", str(broken)],
    ):
        assert main(["forecast", "eval", *arguments]) == 2
        error = capsys.readouterr().err
        assert str(missing) in error or str(broken) in error
