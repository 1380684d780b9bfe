"""What the simulator asks of engines, and what it says where a model of them is not to be had."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from tests.sim.bench import Bench
from tests.sim.factory import chat, plan_of, play, small_cluster, workflow

from saga.cli import main
from saga.sim.engine import SimEngine
from saga.sim.engine_model import EngineModel, EngineSetup, light_engine


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize("command", ["simulate", "compare --presets vllm,saga"])
def test_without_vllm_its_model_is_refused_before_anything_runs(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--engine-model", "vllm"]) == 2
    said = capsys.readouterr()
    assert said.err == "saga: --engine-model vllm needs vLLM installed beside SAGA\n"
    assert said.out == ""


def test_the_simulation_plays_on_the_engines_that_it_is_given() -> None:
    made: list[EngineModel] = []

    def make(setup: EngineSetup) -> SimEngine:
        engine = light_engine(setup)
        made.append(engine)
        return engine

    played = play(
        "vllm", plan_of([workflow("w", chat((100, 5)))], [0]), small_cluster(3), make_engine=make
    )
    assert list(played.simulation.engines.values()) == made
    assert [engine.name for engine in made] == ["engine-00", "engine-01", "engine-02"]
    assert {engine.capacity_tokens for engine in made} == {6_000}


def test_the_batch_under_way_can_be_looked_at() -> None:
    bench = Bench(max_num_batched_tokens=100)
    assert bench.engine.batch == {}
    bench.submit("a", 30, 10)
    bench.submit("b", 120, 10)
    bench.run(until=0)
    assert bench.engine.batch == {"a": 30, "b": 70}
    bench.run(until=bench.engine.next_event_us)
    assert bench.engine.batch == {"a": 1, "b": 50}
    bench.run()
    assert bench.engine.batch == {}
