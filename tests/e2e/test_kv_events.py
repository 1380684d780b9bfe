"""A real vLLM that publishes its KV events: what the gateway learns of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.e2e.agents import Agent
from tests.e2e.model import MAX_LEN, make_model
from tests.e2e.processes import (
    BLOCK_SIZE,
    MODEL,
    Server,
    Vllm,
    gateway,
    kv_events,
    post,
    start_vllm,
    wait_for,
    wait_until,
)
from tests.gateway.live import ask

NUM_BLOCKS = MAX_LEN // BLOCK_SIZE + 8
"""A small cache: one context of full length, and little more."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    folder = tmp_path_factory.mktemp("small")
    small = ("--num-gpu-blocks-override", str(NUM_BLOCKS))
    one = start_vllm(make_model(folder / "model"), folder / "vllm.log", *kv_events(), *small)
    try:
        wait_for([one])
        yield one
    finally:
        one.stop()


@pytest.fixture
def server(engine: Vllm, tmp_path: Path) -> Iterator[Server]:
    with gateway(engines=[engine], log=tmp_path / "gateway.log", preset="vllm") as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as one:
        yield one


def resident(server: Server) -> float:
    """Tokens that the gateway believes to be there, of all sessions."""
    page = ask(f"{server.url}/metrics")[1].decode()
    (value,) = re.findall(r"^saga_kv_resident_tokens\{.*\} (\S+)$", page, re.MULTILINE)
    return float(value)


def crowd(engine: Vllm, tokens: int, letter: str) -> None:
    """Somebody whom the gateway does not know fills the engine's cache."""
    body = {"model": MODEL, "prompt": letter * tokens, "max_tokens": 1}
    assert post(f"{engine.url}/v1/completions", body)[0] == 200


def test_evictions_are_known_before_the_session_returns(
    engine: Vllm, server: Server, client: openai.OpenAI
) -> None:
    agent = Agent(client, "the one who waits")
    for _ in range(3):
        agent.step()
    assert agent.cached[-1] > 0
    before = resident(server)
    crowd(engine, MAX_LEN - 500, "?")
    wait_until(lambda: 0 < resident(server) < before, 10)
    left = resident(server)
    agent.step()
    assert left == agent.cached[-1], "it is known to the token"
    for letter in "!.":
        crowd(engine, MAX_LEN - 100, letter)
    wait_until(lambda: resident(server) == 0, 10)
    agent.step()
    assert agent.cached[-1] == 0
    assert resident(server) > 0


def test_a_session_may_be_called_what_its_client_calls_it(engine: Vllm, server: Server) -> None:
    headers = {"content-type": "application/json", "x-session-id": "the client's own"}
    body = {"model": MODEL, "prompt": "z" * 1_000, "max_tokens": 1}
    assert ask(f"{server.url}/v1/completions", body, headers=headers)[0] == 200
    assert resident(server) > 0
    for letter in "!.":
        crowd(engine, MAX_LEN - 100, letter)
    wait_until(lambda: resident(server) == 0, 10)
