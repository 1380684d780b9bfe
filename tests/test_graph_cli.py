"""``saga graph show``: of a trace, and of a running gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.gateway.live import ask, chat, gateway
from tests.sim.factory import random_scripts

from saga.cli import main
from saga.traces import write_scripts


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "scripts.jsonl"
    write_scripts(path, random_scripts(3, 12, rich=True))
    return path


def test_a_trace(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, document = tmp_path / "new" / "g.png", tmp_path / "new" / "g.json"
    flow = tmp_path / "new" / "g.mmd"
    told = ["--png", str(picture), "--json", str(document), "--diagram", str(flow)]
    assert main(["graph", "show", str(trace), *told]) == 0
    assert "sessions ended" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert flow.read_text().startswith("flowchart")
    assert json.loads(document.read_text())["format"] == "saga.graph.v1"


def test_what_is_not_there_is_named(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, named in (
        ([str(tmp_path / "missing")], "missing"),
        ([str(trace), "--agent-type", "nobody"], "nobody"),
        ([str(trace), "--diagram", str(tmp_path / "g.svg")], ".mmd or .dot"),
        (["http://127.0.0.1:9"], "127.0.0.1:9"),
        (["http://127.0.0.1:9/v1"], "/v1"),
    ):
        assert main(["graph", "show", *arguments]) == 2
        assert named in capsys.readouterr().err


def test_a_running_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    with gateway() as live:
        for text in ("x", "x y", "x y z"):
            headers = {"x-saga-session-id": "s", "x-saga-agent": "coder/v2"}
            assert ask(f"{live.url}/v1/chat/completions", chat(text), headers=headers)[0] == 200
        assert main(["graph", "show", live.url, "--agent-type", "coder/v2"]) == 0
        told = capsys.readouterr().out
        assert told.startswith("coder/v2: 0 sessions ended")
        assert main(["graph", "show", f"{live.url}/nowhere"]) == 2
        assert "is it a gateway?" in capsys.readouterr().err
