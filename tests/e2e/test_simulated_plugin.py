"""SAGA's plugin inside vLLM's real scheduler, beside the simulator's own engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from benchmarks.fidelity.sweep import retaining_engine
from tests.e2e.conftest import quiet_import
from tests.e2e.hand import Hand, plan
from tests.sim.factory import SECOND, Played, small_cluster

from saga.cli import main
from saga.config import load_preset
from saga.core.policy import Policies
from saga.sim.engine_model import MakeEngine
from saga.sim.host import Simulation

plugin_engine = quiet_import("saga.engine.vllm.simulated.models").plugin_engine
BOTH = pytest.mark.parametrize("make", [retaining_engine, plugin_engine], ids=["light", "plugin"])


def hand(make: MakeEngine) -> Hand:
    """Room for one and a half of the contexts that are played."""
    return Hand(make, "saga", capacity=6_400)


@BOTH
def test_who_is_retained_stays_while_a_newer_one_goes(make: MakeEngine) -> None:
    engine = hand(make)
    for name, until in (("kept", 60 * SECOND), ("other", 0)):
        engine.submit(name, 2_000, 2)
        engine.run()
        engine.engine.retain(name, engine.now + until, 0.5, engine.now)
    engine.submit("traffic", 4_000, 2)
    engine.run()
    assert engine.resident("kept") == 2_000
    assert engine.resident("other") == 400 - 16  # the last block of the traffic is not full
    assert engine.engine.used_up() is None


@BOTH
def test_nobody_is_retained_for_longer_than_promised(make: MakeEngine) -> None:
    engine = hand(make)
    for name, seconds in (("brief", 1), ("long", 3_600)):
        engine.submit(name, 2_000, 2)
        engine.run()
        engine.engine.retain(name, engine.now + seconds * SECOND, 0.5, engine.now)
    engine.now += 2 * SECOND
    engine.submit("traffic", 4_000, 2)
    engine.run()
    assert engine.resident("long") == 2_000
    assert engine.resident("brief") < 500


@BOTH
def test_who_is_released_goes_first(make: MakeEngine) -> None:
    engine = hand(make)
    for name in ("old", "done"):
        engine.submit(name, 2_000, 2)
        engine.run()
        engine.engine.retain(name, engine.now, 0.5, engine.now)
    engine.engine.release("done", engine.now)
    engine.submit("traffic", 4_000, 2)
    engine.run()
    assert engine.resident("old") == 2_000
    assert engine.resident("done") < 500


@BOTH
def test_what_is_said_of_strangers_changes_nothing(make: MakeEngine) -> None:
    engine = hand(make)
    engine.engine.retain("nobody", SECOND, 0.5, 0)
    engine.engine.release("nobody", 0)
    engine.submit("one", 4_000, 2)
    engine.run()
    assert engine.resident("one") == 4_000


def crowded(preset: str) -> Policies:
    """Without admission, so that agents fight for the memory."""
    return replace(load_preset(preset).policies, admission=None)


def whole_run(make: MakeEngine, policies: Policies, seed: int) -> Played:
    """Agents that want several times the memory that there is, unless they are kept waiting."""
    simulation = Simulation(
        plan(seed, rich=False), policies, small_cluster(2, 9_000), make_engine=make
    )
    return Played(simulation, simulation.run())


def hit_rate(played: Played) -> float:
    return played.record.tokens.hit / played.record.tokens.prompt


@pytest.mark.parametrize("preset", ["saga", "saga_paper"])
def test_the_plugin_finds_what_the_light_engine_finds(preset: str) -> None:
    """On average: which sessions lose their KV first differs a little, and one leads to another."""
    light, plugin = (
        [hit_rate(whole_run(make, crowded(preset), seed)) for seed in (1, 2, 3, 6)]
        for make in (retaining_engine, plugin_engine)
    )
    assert max(light) < 0.5, "memory is short"
    assert mean(plugin) == pytest.approx(mean(light), abs=0.02)
    assert plugin == pytest.approx(light, abs=0.05)


def test_it_is_asked_for_no_more_than_it_can() -> None:
    simulation = whole_run(plugin_engine, load_preset("saga").policies, 1).simulation
    assert simulation.policies.prefetch is not None
    assert (simulation.num_prefetches, simulation.num_moves) == (0, 0)
    assert [engine.num_jobs for engine in simulation.engines.values()] == [0, 0]


def test_the_command_runs_with_the_plugin(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = (
        "compare --engine-model vllm-plugin --presets saga,vllm --workload tau2 --seeds 1 "
        "--cluster paper-16xa100 --set num_engines=1 --tasks 3 --load 0.2 --quiet --processes 1 "
        f"--json {report}"
    )
    assert main(command.split()) == 0
    assert '"engine model": "vllm-plugin"' in report.read_text()


def test_what_no_engine_can_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = "simulate --engine-model vllm-plugin --preset oracle --quiet"
    assert main(command.split()) == 2
    assert "preset oracle wants eviction by what only a simulator knows" in capsys.readouterr().err
