"""``saga trace convert``."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from saga.cli import main
from saga.traces import WRITERS, read_scripts


def convert(source: Path, target: Path, to: str, *more: str) -> int:
    return main(["trace", "convert", str(source), str(target), "--to", to, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.jsonl.gz"
    setting = ["--preset", "vllm", "--cluster", "paper-16xa100", "--tasks", "3", "--quiet"]
    code = main(["simulate", *setting, "--trace", str(path)])
    assert code == 0
    return path


@pytest.mark.parametrize("to", WRITERS)
def test_a_run_can_be_exported_and_played(
    run: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "for it" / "out.jsonl.gz"
    assert convert(run, out, to) == 0
    told = capsys.readouterr().out
    assert told.startswith("3 workflows, 3 sessions, ")
    assert f"from run to {to}: {out}\n{to} leaves out: " in told
    source, trace = read_scripts(run, strict=True), read_scripts(out, strict=True)
    steps = sum(script.num_steps for script in source.scripts)
    assert sum(script.num_steps for script in trace.scripts) == steps
    if to == "otel":
        assert trace.times == source.times
    played = ["simulate", "--workload", f"file:{out}", "--cluster", "paper-16xa100", "--tasks", "3"]
    assert main([*played, "--rate", "60", "--quiet"]) == 0


@pytest.mark.parametrize("to", ["otel", "dynamo", "agentic-mooncake"])
def test_a_run_can_be_given_a_date(run: Path, tmp_path: Path, to: str) -> None:
    """The first call begins then; all others as long after it as before."""
    plain, dated = tmp_path / "plain", tmp_path / "dated"
    assert convert(run, plain, to) == 0
    assert convert(run, dated, to, "--start", "2026-01-31T12:00:00+00:00") == 0
    before, after = read_scripts(plain, strict=True), read_scripts(dated, strict=True)
    if to != "dynamo":  # which rounds to milliseconds
        assert after.scripts == before.scripts
    if to != "agentic-mooncake":
        first = min(spans[0][0][0] for spans in after.times.values())
        assert first == round(datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp() * 1e6)


def test_what_was_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "agent.jsonl"
    step = {"prompt_tokens": 9, "output_tokens": 0}
    lines = [{"task": "a", "steps": [step, step]}, {"task": "b"}]
    source.write_text("\n".join(map(json.dumps, lines)))
    assert convert(source, tmp_path / "out", "otel") == 0
    said = capsys.readouterr().err
    assert f"saga: {source}:2: Object missing required field `steps`; left out\n" in said
    assert f"saga: {source}: 2 steps without output, played with 1 token\n" in said
    assert convert(source, tmp_path / "strict", "otel", "--strict") == 2
    assert capsys.readouterr().err == f"saga: {source}:2: Object missing required field `steps`\n"
    assert not (tmp_path / "strict").exists()


def test_a_format_that_is_not_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        convert(tmp_path / "in", tmp_path / "out", "mini-swe-agent")
    assert "choose from" in capsys.readouterr().err
