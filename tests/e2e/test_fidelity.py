"""The simulator's own engine against engines that vLLM's real scheduler schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.fidelity.schedule import Arrival, compare, record, replay
from tests.e2e.conftest import quiet_import
from tests.e2e.hand import PRESET, Hand, plan
from tests.sim.factory import SECOND, play, small_cluster

from saga.cli import main
from saga.report.records import Outcome
from saga.sim.engine_model import MakeEngine, light_engine
from saga.sim.plan import EngineLoss

vllm_engine = quiet_import("saga.engine.vllm.simulated.models").vllm_engine


def test_the_other_model_is_refused_what_only_the_plugin_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["simulate", "--engine-model", "vllm", "--preset", "saga", "--quiet"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "preset saga wants" in said
    assert "retention" in said and "prefetch" in said


def test_the_command_runs_on_vllm(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = (
        "simulate --engine-model vllm --preset vllm --workload tau2 --cluster paper-16xa100 "
        f"--set num_engines=1 --tasks 3 --load 0.2 --quiet --processes 1 --json {report}"
    )
    assert main(command.split()) == 0
    assert '"engine model": "vllm"' in report.read_text()


# ---- fixed arrivals


def schedule_of(seed: int, *, rich: bool, reserve: bool) -> list[Arrival]:
    return record(plan(seed, rich=rich), small_cluster(1, 12_000), reserve_full_prompt=reserve)


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize(("seed", "rich"), [(1, False), (2, False), (2, True), (3, True)])
def test_every_decision_is_the_same_on_a_fixed_schedule(
    seed: int, rich: bool, reserve: bool
) -> None:
    """Rich: shared prefixes, sub-agents that continue from their parents, contexts that are cut."""
    arrivals = schedule_of(seed, rich=rich, reserve=reserve)
    light, vllm = (
        replay(make, arrivals, small_cluster(1, 12_000), reserve_full_prompt=reserve)
        for make in (light_engine, vllm_engine)
    )
    difference = compare(light, vllm)
    assert difference.requests == len(arrivals) > 100
    assert min(difference.evicted_blocks) > 1_000, "memory is short"
    assert light.hits == vllm.hits
    assert light.batches == vllm.batches
    assert light.resident == vllm.resident
    assert difference.evicted_blocks[0] == difference.evicted_blocks[1]
    assert difference.num_preemptions[0] == difference.num_preemptions[1]


# ---- with feedback


@pytest.mark.parametrize("seed", [1, 2])
def test_whole_runs_are_the_same(seed: int) -> None:
    """Every event and every action, in order and time, once the two engines are there."""
    runs = [
        play(
            PRESET,
            plan(seed, rich=False),
            small_cluster(2, 9_000),
            make_engine=make,
            reserve_full_prompt=True,
            check=True,
        )
        for make in (light_engine, vllm_engine)
    ]
    light, vllm = runs
    assert light.log[2:] == vllm.log[2:]
    assert light.record.tokens == vllm.record.tokens
    assert light.record.tokens.regenerated > 0
    assert light.record.evicted_tokens == vllm.record.evicted_tokens
    for one, other in zip(light.record.engines, vllm.record.engines, strict=True):
        assert one.busy_us == other.busy_us
        assert one.active == pytest.approx(other.active, rel=0.05)


def test_clients_that_leave_and_engines_that_are_lost() -> None:
    options: dict[str, Any] = {
        "client_timeout_us": 8 * SECOND,
        "losses": (EngineLoss(engine=1, at=6 * SECOND, back=9 * SECOND),),
    }
    runs = [
        play(
            PRESET,
            plan(4, rich=False, **options),
            small_cluster(2, 9_000),
            make_engine=make,
            check=True,
        )
        for make in (light_engine, vllm_engine)
    ]
    outcomes = [[one.outcome for one in run.record.workflows] for run in runs]
    assert {Outcome.TIMED_OUT, Outcome.FINISHED} <= set(outcomes[0])
    assert outcomes[0] == outcomes[1]
    assert runs[0].record.tokens == runs[1].record.tokens
    assert all(engine.num_jobs == 0 for engine in runs[1].simulation.engines.values())


# ---- by hand


BOTH = pytest.mark.parametrize("make", [light_engine, vllm_engine], ids=["light", "vllm"])


@BOTH
def test_a_request_that_can_never_fit_is_refused(make: MakeEngine) -> None:
    hand = Hand(make, capacity=6_000)
    hand.submit("long", 6_000, 10)
    hand.submit("short", 5_000, 10)
    hand.run()
    assert ("long", "refused") in hand.told
    assert ("short", "finished") in hand.told
    assert hand.engine.num_jobs == 0


@BOTH
def test_who_is_told_to_give_way_goes_behind_all_that_wait(make: MakeEngine) -> None:
    hand = Hand(make, capacity=6_000, max_num_seqs=1)
    for name in ("first", "second"):
        hand.submit(name, 100, 50)
    hand.run(steps=1)
    hand.engine.preempt("first", hand.now)
    hand.run()
    assert [name for name, what in hand.told if what == "started"] == ["first", "second", "first"]
    assert [name for name, what in hand.told if what == "finished"] == ["second", "first"]
    assert hand.engine.counts.num_preemptions == 1


@BOTH
def test_the_urgent_go_first(make: MakeEngine) -> None:
    hand = Hand(make, capacity=6_000, max_num_seqs=1)
    hand.submit("running", 100, 5)
    hand.run(steps=1)
    hand.submit("later", 100, 5, priority=1)
    hand.submit("urgent", 100, 5)
    hand.run()
    assert [name for name, what in hand.told if what == "finished"] == [
        "running", "urgent", "later",
    ]  # fmt: skip


@BOTH
def test_what_was_evicted_is_told_of_its_session(make: MakeEngine) -> None:
    hand = Hand(make, capacity=6_000)
    for name in ("old", "new"):
        hand.submit(name, 4_000, 2)
        hand.run()
    assert hand.engine.used_up() is None, "some blocks are left"
    hand.submit("newest", 5_990, 2)
    hand.run()
    gone = {hand.engine.used_up(), hand.engine.used_up()}
    assert gone == {("old", 0), ("new", 0)}
    assert hand.engine.used_up() is None


@BOTH
def test_memory_adds_up(make: MakeEngine) -> None:
    hand = Hand(make, capacity=6_000)
    hand.submit("one", 1_600, 100)
    hand.run()
    idle_from = hand.now
    hand.engine.reset_counts(idle_from)
    occupancy = hand.engine.settle(idle_from + 1_000)
    blocks = (1_600 + 99) // 16
    assert occupancy.active == 0
    assert occupancy.waiting + occupancy.dead == blocks * 1_000
