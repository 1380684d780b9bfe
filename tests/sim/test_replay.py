"""A recorded run, decided again."""

import json
from pathlib import Path

import pytest

from saga.cli import main
from saga.sim.replay import replay
from saga.traces import TraceError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "run.jsonl.gz"
    arguments = "simulate --preset saga_paper --cluster paper-16xa100 --load 1.3 --tasks 40 --quiet"
    assert main([*arguments.split(), "--trace", str(path)]) == 0
    return path


def test_the_recorded_preset_decides_as_it_did(run: Path) -> None:
    """Played on the same engines, the same preset sends nearly every request where it was sent.

    (The recording does not tell which part of a prompt was a system prefix shared by all, so that
    loads differ a little.)"""
    done = replay(run, (), cluster="paper-16xa100")
    (same,) = done.runs
    assert same.preset == "saga_paper"
    assert done.num_moved(same) == 0
    assert len(same.placements) == len(done.recorded.placements)
    recorded_mean = sum(done.recorded.tct_us.values()) / len(done.recorded.tct_us)
    means = [w.tct_us for w in same.record.workflows if w.tct_us is not None]
    assert sum(means) / len(means) == pytest.approx(recorded_mean, rel=0.1)


def test_another_preset_decides_otherwise(run: Path) -> None:
    done = replay(run, ("vllm",), cluster="paper-16xa100")
    paper, vllm = done.runs
    assert 0 < done.num_moved(vllm) < len(vllm.placements)
    assert vllm.record.tokens.regenerated > paper.record.tokens.regenerated


def test_the_command_says_it_in_a_table_and_in_json(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "replay.json"
    arguments = ["trace", "replay", str(run), "--preset", "saga", "--cluster", "paper-16xa100"]
    assert main([*arguments, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "recorded: preset saga_paper, 4 engines" in text
    assert "Simulated" in text
    figures = json.loads(out.read_text())
    assert set(figures["simulated"]) == {"saga_paper", "saga"}
    assert figures["simulated"]["saga_paper"]["num_moved"] == 0
    assert 0 < figures["recorded"]["hit_rate"] <= 1


def test_bad_input_names_the_thing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "replay", str(run), "--preset", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
    with pytest.raises(TraceError, match=r"missing\.jsonl"):
        replay(tmp_path / "missing.jsonl", ("saga",), cluster="paper-16xa100")
