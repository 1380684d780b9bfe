"""What the tenants had over time: by hand, and as laws over whole runs."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
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
    workflow,
)

from saga.config import load_preset
from saga.core import events as ev
from saga.core.actions import Dispatch
from saga.core.scheduler import Scheduler
from saga.report.sampler import MOST_SAMPLES, Sampler
from saga.sim.plan import LEAST_SPACING_US, EngineLoss, spacing_us

SAGA = load_preset("saga").policies


def engine_up() -> ev.EngineUp:
    return ev.EngineUp(
        at=0,
        engine="e",
        kv_capacity_tokens=1_000,
        max_num_seqs=1,
        prefill_us_per_token=10.0,
        decode_us_per_token=100.0,
    )


def arrive(scheduler: Scheduler, at: int, tenant: str, weight: float, prompt: int) -> None:
    """A workflow ``w-TENANT`` of one request with that prompt."""
    for event in (
        ev.WorkflowSubmitted(
            at=at, workflow=f"w-{tenant}", tenant=tenant, agent_type="a", weight=weight
        ),
        ev.SessionOpened(at=at, session=f"s-{tenant}", workflow=f"w-{tenant}"),
        ev.RequestArrived(
            at=at, request=f"r-{tenant}", session=f"s-{tenant}", prompt_tokens=prompt
        ),
    ):
        scheduler.handle(event)


def test_a_sample_is_what_a_person_sees() -> None:
    """blue, of weight 3, computes 200 tokens and writes 7 until 50; red, of weight 1, comes at 10
    and is never let in: it does not fit beside blue."""
    scheduler = Scheduler(SAGA)
    sampler = Sampler(scheduler, {"red", "blue", "absent"}, every_us=20)
    scheduler.handle(engine_up())
    arrive(scheduler, 0, "blue", 3.0, 200)
    scheduler.handle(ev.RequestStarted(at=5, request="r-blue", cached_tokens=0))
    arrive(scheduler, 10, "red", 1.0, 900)
    sampler.take(50)
    scheduler.handle(ev.RequestFinished(at=50, request="r-blue", output_tokens=7, cached_tokens=0))
    sampler.take(79)
    sampler.ends("w-blue")
    scheduler.handle(ev.WorkflowDone(at=79, workflow="w-blue"))
    series = sampler.finish(79)
    assert list(series.at_us) == [0, 20, 40, 60, 79]
    blue, red, absent = (series.tenants[name] for name in ("blue", "red", "absent"))
    assert list(blue.service_us) == [0, 0, 0, 2_700, 2_700]
    assert list(red.service_us) == [0, 0, 0, 0, 0]
    assert list(red.num_waiting)[3] == 1
    assert list(blue.num_waiting) == [0, 0, 0, 0, 0]
    assert list(blue.entitlement) == [0.75, 0.75, 0.75, 0.75, 0]
    assert list(red.entitlement) == [0.25, 0.25, 0.25, 0.25, 1]
    assert blue.committed_tokens[3] >= 207 > 0 == blue.committed_tokens[4]
    assert list(red.committed_tokens)[:4] == [0, 0, 0, 0]
    assert blue.lead_us[0] >= 0 == red.lead_us[0]
    assert not any([*absent.service_us, *absent.num_waiting, *absent.entitlement])


@given(st.lists(st.integers(0, 3_000), max_size=60), st.integers(1, 50))
def test_law_samples_are_few_and_evenly_spaced(steps: list[int], every_us: int) -> None:
    sampler, now = Sampler(Scheduler(SAGA), {"t"}, every_us), 0
    for step in steps:
        now += step
        sampler.take(now)
    *regular, last = sampler.finish(now).at_us
    assert last == now
    assert regular[0] == 0 and len(regular) < MOST_SAMPLES
    spacings = {after - before for before, after in pairwise(regular)}
    assert len(spacings) <= 1
    for spacing in spacings:
        doublings = spacing // every_us
        assert spacing % every_us == 0 and doublings & (doublings - 1) == 0
        assert now - spacing < regular[-1] <= now
        assert doublings == 1 or len(regular) >= MOST_SAMPLES // 2
    lengths = {len(sampler.series.at_us), len(sampler.series.tenants["t"].service_us)}
    assert lengths == {len(regular) + 1}


def test_who_waits_longest_waits_since_its_arrival() -> None:
    scheduler = Scheduler(SAGA)
    sampler = Sampler(scheduler, {"red", "blue"}, every_us=20)
    arrive(scheduler, 15, "blue", 1.0, 200)
    scheduler.handle(
        ev.RequestArrived(at=31, request="r2", session="s-blue", prompt_tokens=200)
    )  # both wait for an engine
    sampler.take(59)
    scheduler.handle(ev.RequestCancelled(at=59, request="r-blue"))
    series = sampler.finish(80)
    assert list(series.at_us) == [0, 20, 40, 60, 80, 80]
    assert list(series.tenants["blue"].longest_wait_us) == [0, 5, 25, 29, 49, 49]
    assert not any(series.tenants["red"].longest_wait_us)


@given(st.integers(0, 4 * MOST_SAMPLES), st.integers(1, 50))
def test_law_service_is_known_however_many_samples_went(num: int, every_us: int) -> None:
    """What was given between samples that are gone counts in those that stay."""
    scheduler, now = Scheduler(SAGA), 0
    sampler = Sampler(scheduler, {"t"}, every_us)
    scheduler.handle(engine_up())
    arrive(scheduler, 0, "t", 1.0, 10)
    workflow, sums = scheduler.state.workflows["w-t"], {0: 0.0}
    for number in range(num):
        sampler.take(now)
        workflow.service_us += number * 7 % 13
        now += every_us
        sums[now] = workflow.service_us
    sampler.ends("w-t")
    scheduler.handle(ev.WorkflowDone(at=now, workflow="w-t"))
    series = sampler.finish(now)
    assert list(series.tenants["t"].service_us) == [sums[at] for at in series.at_us]


def test_no_time_between_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="every_us=0"):
        Sampler(Scheduler(SAGA), {"t"}, 0)


def test_half_the_samples_are_for_the_time_of_arrivals() -> None:
    scripts = [workflow(name, chat((40, 1))) for name in "abc"]
    hour = 3_600 * SECOND
    assert spacing_us(plan_of(scripts, [0, 1, hour])) == hour // (MOST_SAMPLES // 2)
    assert spacing_us(plan_of(scripts, [0, 1, 2])) == LEAST_SPACING_US
    assert spacing_us(plan_of(scripts, agents=2)) == LEAST_SPACING_US


def charged(played: Played) -> Counter[str]:
    """What the finished requests cost on each engine, from the events alone."""
    engines: dict[str, ev.EngineUp] = {}
    asked: dict[str, int] = {}
    sent: dict[str, str] = {}
    costs: Counter[str] = Counter()
    for event, actions in played.log:
        if isinstance(event, ev.EngineUp):
            engines[event.engine] = event
        elif isinstance(event, ev.RequestArrived):
            asked[event.request] = event.prompt_tokens
        elif isinstance(event, ev.RequestFinished):
            assert event.cached_tokens is not None
            engine = engines[sent[event.request]]
            costs[engine.engine] += round(
                (asked[event.request] - event.cached_tokens) * engine.prefill_us_per_token
                + event.output_tokens * engine.decode_us_per_token
            )
        sent |= {act.request: act.engine for act in actions if isinstance(act, Dispatch)}
    return costs


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("preset", ["vllm", "saga_paper", "saga"])
def test_laws_of_the_series_of_a_run(preset: str, seed: int) -> None:
    plan = plan_of(
        random_scripts(seed, 25),
        random_arrivals(seed, 25, 2.0),
        weights={"tenant-0": 2.0},
        losses=[EngineLoss(engine=0, at=4 * SECOND, back=6 * SECOND)],
        client_timeout_us=9 * SECOND,
    )
    played = play(preset, plan, small_cluster(2, 6_000, max_num_seqs=3))
    series = played.record.series
    tenants = list(series.tenants.values())
    assert set(series.tenants) == {script.tenant for script in plan.scripts}
    assert len(series.at_us) > 10
    assert list(series.at_us) == sorted(series.at_us)
    for tenant in tenants:
        assert list(tenant.service_us) == sorted(tenant.service_us)
        assert min(tenant.committed_tokens) >= 0 <= min(tenant.num_waiting)
        assert min(tenant.lead_us) >= 0
        for num, longest in zip(tenant.num_waiting, tenant.longest_wait_us, strict=True):
            assert longest >= 0 and (num or not longest)
    for shares in zip(*(tenant.entitlement for tenant in tenants), strict=True):
        assert sum(shares) == pytest.approx(1) or set(shares) == {0}
    total = sum(tenant.service_us[-1] for tenant in tenants)
    engines = charged(played)
    assert len(engines) == 2
    assert total == pytest.approx(sum(engines.values()), abs=len(played.log))
    assert not any(tenant.num_waiting[-1] for tenant in tenants)


def test_the_deviation_outlives_the_engine_whose_queue_had_it() -> None:
    """Two tenants queue for an engine that is lost at once when the last has arrived; what came
    back has had no queue since."""
    scripts = [workflow(f"{t}{n}", chat((400, 40)), tenant=t) for n in range(4) for t in "ab"]
    cluster = small_cluster(1, 60_000, max_num_seqs=1)
    loss = EngineLoss(engine=0, at=120_000, back=60 * SECOND)
    plan = plan_of(scripts, [*range(8)], losses=[loss], client_timeout_us=SECOND)
    time = plain_time(cluster, step_us=1_000, token_us=10)
    played = play("saga_paper", plan, cluster, step_time=time)
    assert played.record.deviation is not None and 0 < played.record.deviation <= 1
    assert played.record.deviation == played.simulation.scheduler.deviation
    assert not any(queue.deviation for queue in played.simulation.scheduler.queues.values())
    assert play("vllm", plan, cluster, step_time=time).record.deviation is None
