"""``saga simulate --trace``: the run as it happened, in a file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tests.sim.factory import random_scripts

import saga
from saga.cli import main
from saga.traces import read_scripts, write_scripts

SETTING = ["--cluster", "paper-16xa100", "--set", "num_engines=2", "--rate", "60", "--quiet"]


def simulate(source: Path, *arguments: str | Path) -> int:
    return main(
        ["simulate", "--workload", f"file:{source}", "--tasks", "6", *SETTING, *map(str, arguments)]
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "scripts.jsonl"
    write_scripts(path, random_scripts(3, 6, rich=False))
    return path


def metrics(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text())
    return {name: report[name] for name in ("presets", "seeds")}


def test_the_trace_of_a_run_can_be_played_again(source: Path, tmp_path: Path) -> None:
    trace = tmp_path / "made" / "for it" / "run.jsonl.gz"
    report, plain = tmp_path / "report.json", tmp_path / "plain.json"
    assert simulate(source, "--seed", "4", "--json", report, "--trace", trace) == 0
    header, *lines = map(json.loads, gzip.decompress(trace.read_bytes()).splitlines())
    command = header.pop("command")
    assert header == {
        "format": "saga.trace.v1",
        "version": saga.__version__,
        "preset": "saga",
        "seed": "4",
        "workload": f"file:{source}",
        "cluster": "paper-16xa100",
    }
    assert command.startswith("saga simulate --workload file:")
    assert {line["event"] for line in lines} > {"EngineUp", "RequestFirstToken"}

    again = read_scripts(trace, strict=True)
    assert [script.sessions for script in again.scripts] == [
        script.sessions for script in read_scripts(source).scripts
    ]
    assert simulate(trace) == 0
    assert main(["trace", "stats", str(trace)]) == 0
    assert simulate(source, "--seed", "4", "--json", plain) == 0
    assert metrics(plain) == metrics(report)


def test_a_trace_that_cannot_be_written_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(source, "--trace", tmp_path) == 2
    said = capsys.readouterr()
    assert said.err == f"saga: {tmp_path}: Is a directory\n"
