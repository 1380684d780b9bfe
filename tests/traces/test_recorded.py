"""What a recorded run decided, read back from its trace."""

import gzip
from pathlib import Path

import pytest
from tests.sim.factory import SECOND, chat, plan_of, play, random_arrivals, random_scripts

from tests.sim.factory import small_cluster, workflow  # isort: skip

from saga.core import actions as act
from saga.core import events as ev
from saga.traces import TraceError, TraceWriter
from saga.traces.recorded import read_recorded


def record(path: Path, seed: int = 1) -> list[tuple[ev.Event, tuple[act.Action, ...]]]:
    plan = plan_of(random_scripts(seed, 20), random_arrivals(seed, 20, 2.0))
    played = play("saga_paper", plan, small_cluster(2, 6_000, max_num_seqs=8))
    with TraceWriter(path, {"preset": "saga_paper"}) as write:
        for event, actions in played.log:
            write(event, actions)
    return played.log


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_figures_are_those_of_the_run(tmp_path: Path, name: str) -> None:
    log = record(tmp_path / name)
    recorded = read_recorded(tmp_path / name)
    events = [event for event, _ in log]
    assert recorded.preset == "saga_paper"
    assert recorded.engines == dict.fromkeys(("engine-00", "engine-01"), 6_000)
    arrived = [event for event in events if isinstance(event, ev.RequestArrived)]
    finished = [event for event in events if isinstance(event, ev.RequestFinished)]
    assert len(recorded.placements) == len(arrived) == len(finished)
    assert recorded.prompt_tokens == sum(event.prompt_tokens for event in arrived)
    assert recorded.cached_tokens == sum(event.cached_tokens or 0 for event in finished)
    assert len(recorded.tct_us) == 20
    assert recorded.num_lines_left_out == 0
    sent_at_once = sum(
        any(isinstance(a, act.Dispatch) and a.request == event.request for a in actions)
        for event, actions in log
        if isinstance(event, ev.RequestArrived)
    )
    assert recorded.num_waits == len(arrived) - sent_at_once


def test_tct_and_placements_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    plan = plan_of([workflow("w", chat((100, 5), (50, 5), gap=SECOND))], [3 * SECOND])
    played = play("vllm", plan, small_cluster(1))
    with TraceWriter(path, {"preset": "vllm"}) as write:
        for event, actions in played.log:
            write(event, actions)
    recorded = read_recorded(path)
    end = max(e.at for e, _ in played.log if isinstance(e, ev.RequestFinished))
    assert recorded.tct_us == {"w": end - 3 * SECOND}
    assert recorded.placements == {("w/0", 0): "engine-00", ("w/0", 1): "engine-00"}


def test_broken_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path)
    lines = path.read_bytes().splitlines()
    lines[5:5] = [b"{", b"[]", b'{"event": "RequestFinished", "at": 1}']
    path.write_bytes(b"\n".join(lines))
    recorded = read_recorded(path)
    assert recorded.num_lines_left_out == 3
    assert len(recorded.tct_us) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "never had an engine"),
        (b'{"format": "other"}\n', "not a recorded run"),
        (b"what?\n", "not a recorded run"),
        (b'{"format": "saga.trace.v1"}\n', "never had an engine"),
    ],
)
def test_what_is_no_recorded_run_is_said_so(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        read_recorded(path)
    with pytest.raises(TraceError, match=r"nothing\.jsonl"):
        read_recorded(tmp_path / "nothing.jsonl")
    damaged = tmp_path / "x.jsonl.gz"
    damaged.write_bytes(gzip.compress(content)[:8])
    with pytest.raises(TraceError, match=r"x\.jsonl\.gz"):
        read_recorded(damaged)
