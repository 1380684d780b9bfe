"""Laws that every run keeps, whatever the preset."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from pathlib import Path
from random import Random
from statistics import mean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.factory import (
    SECOND,
    Played,
    chat,
    plain_time,
    plan_of,
    play,
    random_arrivals,
    random_scripts,
    small_cluster,
    small_workloads,
    workflow,
)

from saga.core.actions import Move, Preempt, Prefetch
from saga.core.events import RequestFinished, RequestStarted
from saga.core.model import RequestState
from saga.report.records import Outcome, TokenCounts
from saga.sim.counts import Counts
from saga.sim.hardware import ClusterSpec
from saga.sim.kv_cache import Segment
from saga.sim.latency import StepTime, alone_ps, end_us, timeline
from saga.sim.lineage import Content, Lineage
from saga.sim.plan import EngineLoss, Plan
from saga.traces.script import WorkflowScript

HOST = "vllm_apc_affinity+offload=host_lru"
CROWDED = "saga+admission=null"
CROWDED_ORACLE = "oracle+admission=null"
"""Admission keeps small clusters from evictions, moves and preemptions; these have none."""
PRESETS = [
    *("vllm", "vllm_apc_affinity", HOST, "saga_paper", "saga", "oracle"),
    *(CROWDED, CROWDED_ORACLE),
]


def scene(preset: str, seed: int, *, rate: float = 2.0) -> tuple[Plan, ClusterSpec]:
    """A crowded little cluster: 40 workflows in which an engine is lost (seeds 1, 4, ...) or
    clients lose patience (seeds 2, 5, ...)."""
    lost = [EngineLoss(engine=1, at=6 * SECOND, back=13 * SECOND)] if seed % 3 == 1 else []
    plan = plan_of(
        random_scripts(seed, 40),
        random_arrivals(seed, 40, rate),
        losses=lost,
        client_timeout_us=6 * SECOND if seed % 3 == 2 else None,
    )
    return plan, small_cluster(2, 6_000, max_num_seqs=8, host_memory_gib=host_gib(preset))


def host_gib(preset: str) -> float:
    return 2.0 if "host_lru" in preset else 0.0


def total(played: Played) -> Counts:
    """What the engines that are up at the end have counted."""
    return sum((engine.counts for engine in played.simulation.engines.values()), Counts())


# ---- jumping and stepping


def what_happened(played: Played) -> Counter[str]:
    record, actions = played.record, [a for _, actions in played.log for a in actions]
    return Counter(
        evictions=record.num_evictions,
        preemptions=record.num_preemptions,
        reloads=record.tokens.host_hit,
        moves=record.num_moves,
        prefetches=sum(isinstance(action, Prefetch) for action in actions),
        scheduler_preemptions=sum(isinstance(action, Preempt) for action in actions),
        waits=sum(each.longest_wait_us > SECOND for each in record.workflows),
        timeouts=sum(each.outcome is Outcome.TIMED_OUT for each in record.workflows),
    )


EXPECTED = {
    "vllm": {"evictions", "preemptions", "waits", "timeouts"},
    "vllm_apc_affinity": {"evictions", "preemptions", "waits", "timeouts"},
    HOST: {"evictions", "preemptions", "waits", "timeouts", "reloads"},
    "saga_paper": {
        *("evictions", "preemptions", "waits", "timeouts", "prefetches"),
        "scheduler_preemptions",
    },
    "saga": {"waits", "timeouts"},
    "oracle": {"waits", "timeouts"},
    CROWDED: {"evictions", "preemptions", "waits", "timeouts", "moves"},
    CROWDED_ORACLE: {"evictions", "preemptions", "waits", "timeouts"},
}
"""What must have happened in the scenes of a preset for them to prove anything."""


@pytest.mark.parametrize("preset", PRESETS)
def test_a_jump_is_many_steps(preset: str) -> None:
    """Every event and every action is the same at the same time, stepping or jumping."""
    seen: Counter[str] = Counter()
    for seed in range(3):
        plan, cluster = scene(preset, seed)
        jumping = play(preset, plan, cluster)
        stepping = play(preset, plan, cluster, max_jump=1)
        assert jumping.log == stepping.log
        assert jumping.record.workflows == stepping.record.workflows
        assert jumping.record.tokens == stepping.record.tokens
        assert jumping.record.series == stepping.record.series
        assert stepping.record.num_events > 1.2 * jumping.record.num_events, "nothing was jumped"
        seen += what_happened(jumping)
    assert set(seen) >= EXPECTED[preset], seen


@settings(max_examples=30)
@given(
    workload=small_workloads(),
    preset=st.sampled_from(PRESETS),
    capacity=st.sampled_from([4_000, 5_000, 8_000]),
    budget=st.sampled_from([64, 512, 2_048]),
    num_engines=st.integers(1, 3),
    lost_at=st.one_of(st.none(), st.integers(0, 5 * SECOND)),
    timeout=st.sampled_from([None, 3 * SECOND]),
    reserve=st.booleans(),
)
def test_any_small_run_keeps_the_laws(
    workload: tuple[list[WorkflowScript], list[int]],
    preset: str,
    capacity: int,
    budget: int,
    num_engines: int,
    lost_at: int | None,
    timeout: int | None,
    reserve: bool,
) -> None:
    losses = [] if lost_at is None else [EngineLoss(engine=0, at=lost_at, back=lost_at + 700_000)]
    plan = plan_of(*workload, losses=losses, client_timeout_us=timeout)
    cluster = small_cluster(
        num_engines,
        capacity,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        host_memory_gib=host_gib(preset),
    )
    options = {"reserve_full_prompt": reserve}
    jumping = play(preset, plan, cluster, check=True, **options)
    assert jumping.log == play(preset, plan, cluster, max_jump=1, **options).log
    check_laws(jumping)


# ---- what every run keeps


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", PRESETS)
def test_a_crowded_run_keeps_the_laws(preset: str, seed: int) -> None:
    check_laws(play(preset, *scene(preset, seed), check=True))


@pytest.mark.parametrize("preset", ["vllm_apc_affinity", "saga_paper", CROWDED])
def test_a_window_after_a_warm_up_keeps_the_laws(preset: str) -> None:
    """Of waits, steps and hits that began before the window only what lies in it counts; but for
    the step under way when it begins."""
    for seed in range(2):
        plan, cluster = scene(preset, seed)
        record = play(preset, replace(plan, warmup=0.5), cluster).record
        check_tokens(record.tokens)
        assert len([each for each in record.workflows if each.measured]) == 20
        for engine in record.engines:
            back = [loss.back or 0 for loss in plan.losses if engine.engine == "engine-01"]
            assert engine.window_us == record.end_us - max(record.start_us, *back, 0)
            held = engine.active + engine.waiting + engine.dead
            assert 0 < held <= engine.capacity_tokens * engine.window_us
            assert 0 <= engine.later_hit <= engine.waiting + engine.dead
            assert 0 < engine.busy_us <= engine.window_us + SECOND // 2


def check_laws(played: Played) -> None:
    check_tokens(played.record.tokens)
    check_tokens(total(played).tokens)
    check_parts(played)
    check_conservation(played)
    check_occupancy(played)
    check_restarts(played)
    check_nothing_is_left(played)


def check_tokens(tokens: TokenCounts) -> None:
    parts = (tokens.hit, tokens.host_hit, tokens.regenerated, tokens.new)
    assert tokens.prompt == sum(parts)
    assert min(*parts, tokens.output, tokens.preempted, tokens.prefetched) >= 0


def check_parts(played: Played) -> None:
    """The root session's parts add up to TCT, to the microsecond."""
    for each in played.record.workflows:
        parts = (
            *(each.queue_us, each.prefill_us, each.regenerated_us, each.decode_us),
            *(each.tool_us, each.subagents_us),
        )
        assert min(parts) >= 0
        assert (each.tct_us is not None) == (each.outcome is Outcome.FINISHED)
        if each.tct_us is not None:
            assert sum(parts) == each.tct_us, each


def check_conservation(played: Played) -> None:
    """Every workflow has one outcome; every request that arrived ended in one way."""
    plan, record, state = played.simulation.plan, played.record, played.simulation.scheduler.state
    assert [each.id for each in record.workflows] == [script.id for script in plan.scripts]
    outcomes = Counter(each.outcome for each in record.workflows)
    assert outcomes[Outcome.UNFINISHED] == 0
    if plan.client_timeout_us is None:
        assert outcomes[Outcome.TIMED_OUT] == 0
    assert sum(outcomes.values()) == len(plan.scripts)
    assert state.num_arrived == sum(state.num_ended.values())
    finished = sum(isinstance(event, RequestFinished) for event, _ in played.log)
    assert state.num_ended[RequestState.FINISHED] == finished
    steps = sum(each.num_steps for each in record.workflows if each.outcome is Outcome.FINISHED)
    if outcomes[Outcome.FINISHED] == len(plan.scripts):
        assert finished == steps == state.num_arrived
    assert record.finished_in_window <= outcomes[Outcome.FINISHED]
    measured = sum(script.num_steps for script in plan.scripts)
    first_tokens = sum(map(len, record.ttft_us.values()))
    assert first_tokens == finished <= measured, "warm-up is 0: all are measured"


def check_occupancy(played: Played) -> None:
    """Of every engine, in use + waiting + dead is at most capacity times window."""
    for engine in played.record.engines:
        assert engine.active + engine.waiting + engine.dead <= (
            engine.capacity_tokens * engine.window_us
        )
        assert 0 <= engine.later_hit <= engine.waiting + engine.dead
        assert min(engine.active, engine.waiting, engine.dead, engine.busy_us) >= 0
        assert engine.busy_us <= engine.window_us


def check_restarts(played: Played) -> None:
    """The scheduler hears that a request that it preempted runs again; unless its end was near,
    at the end of the very step (which takes less than half a second)."""
    stopped: dict[str, int] = {}
    for event, actions in played.log:
        if isinstance(event, RequestStarted):
            stopped.pop(event.request, None)
        if isinstance(event, RequestFinished):
            at = stopped.pop(event.request, event.at)
            assert event.at - at < SECOND // 2, f"{event.request} has ended without resuming"
        stopped |= {action.request: event.at for action in actions if isinstance(action, Preempt)}


def check_nothing_is_left(played: Played) -> None:
    """No workflow, session or request stays behind, in the host or in the scheduler."""
    simulation, scheduler = played.simulation, played.simulation.scheduler
    bounded = {"engines", "_planned", "_prefixes", "_network_free"}
    left = {
        name: value
        for name, value in vars(simulation).items()
        if isinstance(value, dict) and name not in bounded and value
    }
    assert not left
    state = scheduler.state
    assert not (state.workflows or state.sessions or state.requests or state.tenants)
    assert not (scheduler.unplaced or len(scheduler.unadmitted))
    assert not any(len(queue) for queue in scheduler.queues.values())
    assert not simulation.recorder.live
    for engine in state.engines.values():
        assert (engine.num_waiting, engine.num_running, engine.num_queued) == (0, 0, 0)
        assert (engine.resident_tokens, engine.committed_tokens, engine.num_sessions) == (0, 0, 0)


@pytest.mark.parametrize("preset", ["vllm_apc_affinity", CROWDED])
def test_memory_does_not_grow_with_the_number_of_workflows(preset: str) -> None:
    def left(count: int) -> int:
        scripts = random_scripts(7, count)
        played = play(preset, plan_of(scripts, random_arrivals(7, count, 2.0)), small_cluster(2))
        gc.collect()
        kept = sum(isinstance(each, Segment | Content | Lineage) for each in gc.get_objects())
        assert played.record.num_evictions
        return kept

    assert left(20) < 100
    assert left(200) < 100, "what two engines of 6,000 tokens hold, not what 200 workflows were"


# ---- the seed decides


def test_same_seed_same_bytes() -> None:
    for preset in PRESETS:
        plan, cluster = scene(preset, 2)
        first, second = play(preset, plan, cluster), play(preset, plan, cluster)
        assert first.log == second.log
        assert replace(first.record, wall_s=0.0) == replace(second.record, wall_s=0.0)


FINGERPRINT = """
from dataclasses import replace
from hashlib import sha256
from tests.sim.factory import play
from tests.sim.test_laws import scene
for preset in ("saga_paper", "saga+admission=null"):
    played = play(preset, *scene(preset, 4))
    told = repr(replace(played.record, wall_s=0.0)) + repr(played.log)
    print(preset, sha256(told.encode()).hexdigest())
"""


def test_same_seed_same_bytes_in_another_process_with_other_hashes() -> None:
    root = Path(__file__).parents[2]
    prints = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "31337")
    }
    assert len(prints) == 1


def test_checking_changes_nothing() -> None:
    plan, cluster = scene("saga_paper", 1)
    plain, checked = (play("saga_paper", plan, cluster, check=check) for check in (False, True))
    assert plain.log == checked.log


# ---- bounds


@pytest.mark.parametrize("preset", ["vllm_apc_affinity", "saga"])
def test_with_endless_memory_and_affinity_nothing_is_regenerated(preset: str) -> None:
    for seed in range(3):
        plan = plan_of(random_scripts(seed, 40), random_arrivals(seed, 40, 2.0))
        played = play(preset, plan, small_cluster(2, 10_000_000))
        tokens = total(played).tokens
        assert (tokens.regenerated, tokens.preempted) == (0, 0)
        assert tokens.hit > 0
        prompts = sum(
            step.prompt_tokens
            for script in plan.scripts
            for session in script.sessions
            for step in session.steps
        )
        assert tokens.prompt == prompts
        assert all(each.regenerated_us == 0 for each in played.record.workflows)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_workflow_is_faster_than_alone(preset: str) -> None:
    """Alone with warm prefixes; up to 1 us of rounding up for each of its events. Steps may be
    cheaper than alone by the block that another session of the workflow has completed (forks)."""
    for seed in (0, 3):
        plan, cluster = scene(preset, seed, rate=0.7)
        step_time = StepTime.of(cluster.engine)
        record = play(preset, plan, cluster).record
        for script, each in zip(plan.scripts, record.workflows, strict=True):
            alone = end_us(timeline(script, alone_ps(script, step_time, warm=True)))
            assert each.tct_us is not None
            assert each.tct_us >= alone, (each, alone)


def test_a_workflow_alone_takes_as_long_as_alone() -> None:
    """Every event may be up to 1 us late: the host's clock has whole microseconds."""
    cluster = small_cluster(1, 100_000)
    step_time = StepTime.of(cluster.engine)
    for script in random_scripts(11, 40):
        if len(script.sessions) > 1:
            continue  # sub-agents share steps with their parent
        each = play("vllm_apc_affinity", plan_of([script], [0]), cluster).record.workflows[0]
        alone = step_time.alone_us(script)
        assert each.tct_us is not None
        assert alone <= each.tct_us <= alone + 3 * each.num_steps, script


def test_twice_the_engines_are_not_slower() -> None:
    for seed in range(4):
        scripts = random_scripts(seed, 60, rich=False)
        arrivals = random_arrivals(seed, 60, 2.5)
        means = []
        for num_engines in (1, 2, 4, 8):
            plan = plan_of(scripts, arrivals)
            record = play("vllm_apc_affinity", plan, small_cluster(num_engines)).record
            means.append(mean(each.tct_us or 0 for each in record.workflows))
        for fewer, more in pairwise(means):
            assert more <= 1.01 * fewer, means


# ---- a textbook queue

SERVICE_US = 10_000


def waits(arrivals: list[int]) -> list[int]:
    """Waiting times in one engine that serves one request at a time, each in one step."""
    cluster = small_cluster(1, 10_000, max_num_seqs=1)
    scripts = [workflow(f"w{number}", chat((50, 1))) for number in range(len(arrivals))]
    step_time = plain_time(cluster, step_us=SERVICE_US)
    plan = plan_of(scripts, arrivals)
    record = play("vllm_apc_affinity", plan, cluster, step_time=step_time).record
    for each in record.workflows:
        assert (each.prefill_us, each.decode_us) == (SERVICE_US, 0)
    return [each.queue_us for each in record.workflows]


@given(gaps=st.lists(st.integers(0, 3 * SERVICE_US), min_size=1, max_size=60))
def test_waiting_times_are_lindleys(gaps: list[int]) -> None:
    """W' = max(0, W + S - A), exactly, also when a request arrives just as the last one ends."""
    arrivals = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    expected = [0]
    for gap in gaps[1:]:
        expected.append(max(0, expected[-1] + SERVICE_US - gap))
    assert waits(arrivals) == expected


@pytest.mark.parametrize("utilisation", [0.5, 0.8])
def test_the_mean_wait_is_that_of_m_d_1(utilisation: float) -> None:
    """Pollaczek and Khinchine: rho S / 2 (1 - rho). Batch means, 3.5 standard errors."""
    random, now, arrivals = Random(42), 0.0, []
    for _ in range(6_500):
        now += random.expovariate(utilisation / SERVICE_US)
        arrivals.append(round(now))
    measured = waits(arrivals)[500:]
    batches = [mean(measured[start : start + 500]) for start in range(0, 6_000, 500)]
    theory = utilisation * SERVICE_US / (2 * (1 - utilisation))
    error = stdev(batches) / sqrt(len(batches))
    assert abs(mean(batches) - theory) < 3.5 * error
    assert error < 0.2 * theory, "too few requests to tell"


def test_moves_arrive_with_their_kv() -> None:
    """In crowded runs the scheduler moves sessions; some of their KV is hit at the new home."""
    played = play(CROWDED, *scene(CROWDED, 0))
    moved = {
        action.session: index
        for index, (_, actions) in enumerate(played.log)
        for action in actions
        if isinstance(action, Move)
    }
    hits = [
        event.cached_tokens
        for session, index in moved.items()
        for event, _ in played.log[index : index + 200]
        if isinstance(event, RequestStarted) and event.request.startswith(f"{session}/")
    ]
    assert any(hits)
