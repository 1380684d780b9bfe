"""What SAGA is for: an agent's next step finds the KV of the one before."""

from __future__ import annotations

from random import Random

import openai
import pytest
from tests.e2e.agents import Agent
from tests.e2e.conftest import Gateway
from tests.e2e.processes import Server

AGENTS = 6
STEPS = 5


def run_agents(server: Server, label: str) -> list[Agent]:
    """Agents that take their steps in turns, each turn in another order; tools take their time."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        agents = [Agent(client, f"{number} of {label}") for number in range(AGENTS)]
        order = Random(1)
        for _ in range(STEPS):
            order.shuffle(agents)
            for agent in agents:
                agent.step()
    return agents


def resumed_share(agents: list[Agent]) -> float:
    """Of all contexts that were resumed, what was still cached."""
    cached = sum(sum(agent.cached[1:]) for agent in agents)
    return cached / sum(sum(agent.contexts[:-1]) for agent in agents)


def test_agents_stay_with_their_kv(serve: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(preset="saga") as server:
        ours = run_agents(server, "saga")
    with serve(preset="vllm") as server:
        spread = run_agents(server, "vllm")
    share, baseline = resumed_share(ours), resumed_share(spread)
    with capsys.disabled():
        print(f"\nresumed context found in the cache: saga {share:.1%}, round robin {baseline:.1%}")
    for agent in ours:
        assert len(set(agent.engines)) == 1
        assert min(agent.shares()) >= 0.8
    assert {engine for agent in ours for engine in agent.engines} == {
        engine for agent in spread for engine in agent.engines
    }, "both engines have agents"
    assert baseline < share - 0.1
