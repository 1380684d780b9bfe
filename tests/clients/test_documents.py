"""The programs that ``docs/clients.md`` shows do what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.clients.tap import Tap
from tests.clients.tools import MODEL, sessions
from tests.gateway.live import Live, ask
from tests.test_docs import FENCED

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
GATEWAY = "http://127.0.0.1:8400"


def program(package: str) -> str:
    """The one that imports the package."""
    texts = [block["body"] for block in FENCED.finditer(DOCUMENT.read_text(encoding="utf-8"))]
    (text,) = (text for text in texts if f"from {package} import" in text)
    return text


@pytest.mark.parametrize(
    ("package", "workflow", "lengths"),
    [("langchain.agents", "ticket-7", [4, 4, 4, 4]), ("agents", "ticket-8", [4])],
)
def test_a_program_is_one_workflow(
    live: Live, tap: Tap, package: str, workflow: str, lengths: list[int]
) -> None:
    source = program(package).replace(GATEWAY, tap.url).replace("my-model", MODEL)
    assert tap.url in source
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != ""
    apart = sessions(tap.steps)
    assert [len(steps) for steps in apart] == lengths
    status, told, _ = ask(f"{live.url}/v1/saga/workflows/{workflow}")
    assert status == 200
    assert {session["id"] for session in told["sessions"]} == {steps[0].session for steps in apart}
