from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.sim.arrivals import Arrivals, FromTrace, GammaRenewal, Poisson, get_arrivals

TRACE_US = (0, 10, 500, 510, 4_000)
PROCESSES: list[Arrivals] = [
    Poisson(2.0),
    GammaRenewal(2.0, 5.0),
    GammaRenewal(2.0, 0.3),
    FromTrace(TRACE_US, 2.0),
    FromTrace(TRACE_US, 2.0, rotate=False),
]

processes = st.sampled_from(PROCESSES)
seeds = st.integers(0, 2**64)


@given(processes, seeds, st.integers(0, 40), st.integers(0, 40))
def test_times_are_whole_microseconds_in_order_and_depend_on_the_seed_alone(
    process: Arrivals, seed: int, num: int, more: int
) -> None:
    times = process.times_us(num, seed)
    assert times.dtype == np.int64
    assert times.shape == (num,)
    assert np.all(np.diff(times, prepend=0) >= 0)
    assert process.times_us(num + more, seed)[:num].tolist() == times.tolist()


@pytest.mark.parametrize("process", PROCESSES)
def test_the_mean_rate_is_kept(process: Arrivals) -> None:
    times = process.times_us(20_000, 1)
    assert 20_000 / times[-1] * 1e6 == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("cv", "process"), [(1.0, Poisson(3.0)), (0.3, GammaRenewal(3.0, 0.3))])
def test_burstiness_is_the_cv_of_the_times_between(cv: float, process: Arrivals) -> None:
    assert coefficient_of_variation(process.times_us(20_000, 1)) == pytest.approx(cv, rel=0.05)


def test_bursts_come_in_bursts() -> None:
    bursty = GammaRenewal(3.0, 4.0).times_us(50_000, 1)
    assert coefficient_of_variation(bursty) == pytest.approx(4.0, rel=0.1)


def coefficient_of_variation(times: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
    between = np.diff(times)
    return float(between.std() / between.mean())


def test_a_trace_is_played_from_its_start_at_the_rate() -> None:
    """Five arrivals a mean gap of 1,000 us apart; after the last a mean gap, and all again."""
    times = FromTrace(TRACE_US, rate_per_s=500.0, rotate=False).times_us(7, 0)
    assert (times - times[0]).tolist() == [0, 20, 1000, 1020, 8000, 10_000, 10_020]


@given(seeds)
def test_a_rotated_trace_has_the_same_gaps_from_another_place_on(seed: int) -> None:
    straight = FromTrace(TRACE_US, rate_per_s=1000.0, rotate=False).times_us(5, seed)
    rotated = FromTrace(TRACE_US, rate_per_s=1000.0).times_us(5, seed)
    gaps = np.diff(straight, prepend=0).tolist()
    assert np.diff(rotated, prepend=0).tolist() in [gaps[i:] + gaps[:i] for i in range(5)]


def test_specifications_name_the_processes(tmp_path: Path) -> None:
    path = tmp_path / "azure.jsonl"
    path.write_text("".join(f'{{"t": {t}, "in": 1, "out": 1}}\n' for t in (1.0, 1.5, 9.0)))
    assert get_arrivals("poisson", 2.0) == Poisson(2.0)
    assert get_arrivals("bursty:3.5", 2.0) == GammaRenewal(2.0, 3.5)
    assert get_arrivals(f"file:{path}", 2.0) == FromTrace((0, 500_000, 8_000_000), 2.0)
    assert get_arrivals("trace", 2.0, workload_us=TRACE_US) == FromTrace(
        TRACE_US, 2.0, rotate=False
    )


@pytest.mark.parametrize("spec", ["", "poison", "poisson:2", "bursty", "bursty:x", "file:"])
def test_what_is_no_specification_is_named(spec: str) -> None:
    with pytest.raises(ValueError, match=f"arrivals are '{spec}', allowed are 'poisson', "):
        get_arrivals(spec, 1.0)


def test_values_out_of_range_are_refused() -> None:
    for rate in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"rate is {rate} per second, allowed is above 0"):
            Poisson(rate)
    for cv in ("0", "-1", "nan", "101"):
        with pytest.raises(ValueError, match="cv of arrivals is"):
            get_arrivals(f"bursty:{cv}", 1.0)
    with pytest.raises(ValueError, match="at least two different times"):
        FromTrace((5, 5), 1.0)
    with pytest.raises(ValueError, match="has no arrival times of its own"):
        get_arrivals("trace", 1.0)
