"""Clients that leave, and an engine that dies."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import openai
from tests.e2e.agents import Agent
from tests.e2e.conftest import Gateway
from tests.e2e.processes import MODEL, Server, Vllm, states, wait_until
from tests.gateway.live import ask

AGENTS = 6
STEPS = 5


def outcomes(server: Server) -> dict[str, int]:
    """Requests that ``arrived``, and by how they ended; what never happened is left out."""
    page = ask(f"{server.url}/metrics")[1].decode()
    ended = re.findall(r'^saga_requests_ended_total\{.*outcome="(\w+)".*\} (\S+)$', page, re.M)
    arrived = re.findall(r"^saga_requests_(arrived)_total\{.*\} (\S+)$", page, re.M)
    return {name: int(float(count)) for name, count in ended + arrived if float(count)}


def test_a_client_that_leaves_stops_the_engine(serve: Gateway, engines: list[Vllm]) -> None:
    engine, asked = engines[0], 3_000
    before = engine.metric("vllm:generation_tokens_total")
    with serve(engines=[engine]) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            stream = client.completions.create(
                model=MODEL, prompt="Never stop.", max_tokens=asked, stream=True
            )
            next(iter(stream))
            wait_until(lambda: engine.metric("vllm:num_requests_running") == 1, 10)
            stream.close()
        wait_until(lambda: engine.metric("vllm:num_requests_running") == 0, 10)
        wait_until(lambda: outcomes(server) == {"arrived": 1, "cancelled": 1}, 10)
    assert engine.metric("vllm:generation_tokens_total") - before < asked


def test_agents_survive_an_engine_that_dies(serve: Gateway, engines: list[Vllm]) -> None:
    """Each step is asked once: a retry of a client would hide a loss."""
    victim, survivor = engines
    half_way = Barrier(AGENTS + 1)
    with (
        serve() as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
        ThreadPoolExecutor(AGENTS) as pool,
    ):

        def live(agent: Agent) -> None:
            for step in range(STEPS):
                agent.step()
                if step == 1:
                    half_way.wait(60)

        agents = [
            Agent(client, f"{number} of the mourners", max_tokens=300) for number in range(AGENTS)
        ]
        lives = [pool.submit(live, agent) for agent in agents]
        half_way.wait(60)
        assert {agent.engines[-1] for agent in agents} == {victim.name, survivor.name}
        wait_until(lambda: victim.metric("vllm:num_requests_running") > 0, 10)
        victim.kill()
        for one in lives:
            one.result(120)
        wait_until(lambda: states(server)[victim.name] == "down", 10)
        assert states(server)[survivor.name] == "up"
        assert {agent.engines[-1] for agent in agents} == {survivor.name}
        requests = AGENTS * STEPS
        assert outcomes(server) == {"arrived": requests, "finished": requests}
