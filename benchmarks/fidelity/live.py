"""Short replays on a live vLLM server on the CPU, and in the simulator.

First one request after another: what each finds in the cache has nothing to do with time. Then as
agents do, with tools and in parallel. For that the idle server is measured before and after each
run: how long a prefill takes, and how long a decode. These two figures are all that the step-time
model is given of the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from math import sqrt
from random import Random
from statistics import mean
from typing import Any

from tests.e2e.processes import BLOCK_SIZE

from benchmarks.fidelity.live_server import (
    MAX_SEQS,
    MAX_TOKENS,
    NUM_BLOCKS,
    PROBE_TOKENS,
    SHAPE,
    Client,
    connect,
    empty,
    measure,
    server,
)
from benchmarks.fidelity.schedule import replay, with_paths
from saga.config import load_preset
from saga.sim.engine_model import MakeEngine, light_engine
from saga.sim.hardware import A100, ClusterSpec, EngineSpec
from saga.sim.host import Simulation
from saga.sim.latency import PS_PER_S, StepTime
from saga.sim.plan import Plan
from saga.traces.script import SessionScript, StepScript, WorkflowScript

WORKFLOWS = 24
STEPS = 5
AT_A_TIME = 3
"""Workflows between which the requests alternate that are sent one after another."""
EVERY_S = (6.0, 3.0)
"""Mean time between the starts of two workflows."""
SEEDS = (1, 2, 3)


# ---- what is played


def scripts(seed: int) -> list[WorkflowScript]:
    """Agents whose context grows to about 2,000 tokens, with tools of a second or two."""
    random = Random(f"live {seed}")
    return [
        WorkflowScript(id=f"w{number:02d}", sessions=(SessionScript(steps=tuple(_steps(random))),))
        for number in range(WORKFLOWS)
    ]


def _steps(random: Random) -> Iterator[StepScript]:
    context = 0
    for number in range(STEPS):
        new = random.randint(500, 900) if number == 0 else random.randint(150, 350)
        output = random.randint(16, 48)
        gap = 0 if number == STEPS - 1 else random.randint(500_000, 2_500_000)
        yield StepScript(kept_tokens=context, new_tokens=new, output_tokens=output, gap_us=gap)
        context += new + output


def arrivals(seed: int, every_s: float) -> list[int]:
    random = Random(f"arrivals {seed}")
    times = accumulate(random.expovariate(1 / every_s) for _ in range(WORKFLOWS))
    return [int(at * 1e6) for at in times]


def one_by_one(seed: int) -> list[str]:
    """An order in which a few workflows at a time take turns at random; names of requests."""
    random = Random(f"order {seed}")
    todo = [[f"w{number:02d}/0/{step}" for step in range(STEPS)] for number in range(WORKFLOWS)]
    order = []
    while todo:
        workflow = random.choice(todo[:AT_A_TIME])
        order.append(workflow.pop(0))
        todo = [left for left in todo if left]
    return order


# ---- on the server


async def _one_by_one(url: str, seed: int) -> dict[str, int]:
    """Cached tokens of each request."""
    by_id = {script.id: script for script in scripts(seed)}
    contexts: dict[str, list[int]] = {name: [] for name in by_id}
    cached = {}
    async with connect() as http:
        client = Client(http, url, seed)
        for name in one_by_one(seed):
            workflow, _, number = name.split("/")
            step = by_id[workflow].sessions[0].steps[int(number)]
            contexts[workflow] += client.text(step.new_tokens)
            answer = await client.ask(contexts[workflow], step.output_tokens)
            contexts[workflow] += answer.tokens
            cached[name] = answer.cached_tokens
    return cached


async def _play(url: str, seed: int, every_s: float) -> tuple[list[float], float]:
    """TCT of each workflow, and the hit rate."""
    async with connect() as http:
        client = Client(http, url, seed)
        times = arrivals(seed, every_s)
        played = await asyncio.gather(
            *(
                client.play(script, at / 1e6)
                for script, at in zip(scripts(seed), times, strict=True)
            )
        )
    prompts, cached = sum(one[1] for one in played), sum(one[2] for one in played)
    return [one[0] for one in played], cached / prompts


# ---- the simulator


def cluster() -> ClusterSpec:
    engine = EngineSpec.of(
        SHAPE,
        A100,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=MAX_TOKENS,
        max_num_seqs=MAX_SEQS,
        kv_capacity_override=(NUM_BLOCKS - 1) * BLOCK_SIZE,  # vLLM never uses its first block
    )
    return ClusterSpec(name="live", description="this machine", num_engines=1, engine=engine)


def calibrated(spec: EngineSpec, prefill_s: float, decode_s: float) -> StepTime:
    """The step time that takes as long as was measured; context costs nothing of its own."""
    bare = replace(
        StepTime.of(spec),
        kv_ps=0,
        attn_ps=0,
        layers_read_ps=0.0,
        layers_token_ps=0.0,
        head_read_ps=0.0,
        head_token_ps=0.0,
    )
    overhead = bare.base_ps(1, 1)
    read = max(0.0, decode_s * PS_PER_S - overhead)
    layers = max(read, prefill_s * PS_PER_S - overhead)
    token = sqrt(layers**2 - read**2) / PROBE_TOKENS
    return replace(bare, layers_read_ps=read, layers_token_ps=token)


def simulate(
    make_engine: MakeEngine, step_time: StepTime, seed: int, every_s: float
) -> tuple[list[float], float]:
    """As ``_play``."""
    played = scripts(seed)
    plan = Plan(
        scripts=played,
        arrivals=arrivals(seed, every_s),
        alone_us=[1] * len(played),
        expected_us=[1] * len(played),
        warmup=0.0,
    )
    simulation = Simulation(
        plan,
        load_preset("vllm_apc_affinity").policies,
        cluster(),
        step_time=step_time,
        make_engine=make_engine,
        reserve_full_prompt=True,
    )
    run = simulation.run()
    tct_s = [one.tct_us / 1e6 for one in run.workflows if one.tct_us is not None]
    counts = sum((engine.counts.tokens.hit for engine in simulation.engines.values()), 0)
    prompts = sum(engine.counts.tokens.prompt for engine in simulation.engines.values())
    return tct_s, counts / prompts


def hits_one_by_one(make_engine: MakeEngine, seed: int) -> dict[str, int]:
    """As ``_one_by_one``."""
    times = [(number * 3_600_000_000, name) for number, name in enumerate(one_by_one(seed))]
    schedule = list(with_paths(times, scripts(seed), BLOCK_SIZE))
    return replay(make_engine, schedule, cluster(), reserve_full_prompt=True).hits


# ---- both


def compare_hits(url: str, vllm_engine: MakeEngine, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Requests of which the simulator says another number of cached tokens than the server."""
    rows = []
    for seed in seeds:
        asyncio.run(empty(url, seed))
        live = asyncio.run(_one_by_one(url, seed))
        row: dict[str, Any] = {"seed": seed, "requests": len(live), "cached": sum(live.values())}
        for model, make_engine in (("light", light_engine), ("vllm", vllm_engine)):
            hits = hits_one_by_one(make_engine, seed)
            row[f"{model}_differs"] = sum(live[name] != hits[name] for name in live)
        rows.append(row)
        print(row, flush=True)
    return rows


def compare_times(url: str, vllm_engine: MakeEngine, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """TCT and hit rate; the machine is measured before and after each run."""
    print("every s  seed  prefill ms     decode ms   | TCT s live light  vllm | hit rate")
    rows = []
    for every_s in EVERY_S:
        for seed in seeds:
            asyncio.run(empty(url, seed))
            before = asyncio.run(measure(url))
            asyncio.run(empty(url, seed))
            live = asyncio.run(_play(url, seed, every_s))
            after = asyncio.run(measure(url))
            prefill_s, decode_s = (
                (one + other) / 2 for one, other in zip(before, after, strict=True)
            )
            step_time = calibrated(cluster().engine, prefill_s, decode_s)
            played = {
                "live": live,
                "light": simulate(light_engine, step_time, seed, every_s),
                "vllm": simulate(vllm_engine, step_time, seed, every_s),
            }
            rows.append(
                {
                    "every_s": every_s,
                    "seed": seed,
                    "prefill_s": [before[0], after[0]],
                    "decode_s": [before[1], after[1]],
                    "tct_s": {name: mean(tct_s) for name, (tct_s, _) in played.items()},
                    "hit_rate": {name: hit_rate for name, (_, hit_rate) in played.items()},
                }
            )
            print(
                f"{every_s:7} {seed:5} {before[0] * 1e3:6.0f} {after[0] * 1e3:5.0f}"
                f" {before[1] * 1e3:8.2f} {after[1] * 1e3:6.2f} |     "
                + " ".join(f"{mean(tct_s):5.2f}" for tct_s, _ in played.values())
                + " | "
                + " ".join(f"{hit_rate:6.2%}" for _, hit_rate in played.values()),
                flush=True,
            )
    return rows


def main(vllm_engine: MakeEngine, *, quick: bool) -> dict[str, Any]:
    seeds = SEEDS[:1] if quick else SEEDS
    with server() as engine:
        asyncio.run(measure(engine.url))  # what the first requests load
        return {
            "one_by_one": compare_hits(engine.url, vllm_engine, seeds),
            "as_agents_do": compare_times(engine.url, vllm_engine, seeds),
        }
