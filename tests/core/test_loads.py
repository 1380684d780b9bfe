"""Loads kept engine by engine are those that a scan would find; ties fall by the dice."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_queues import make_request

from saga.core.loads import MEASURES, Loads, Measure, tie_break
from saga.core.model import Engine, Tenant


def an_engine(number: int) -> Engine:
    return Engine(
        id=f"engine-{number}",
        kv_capacity_tokens=100_000,
        max_num_seqs=8,
        prefill_us_per_token=250.0,
        decode_us_per_token=2_500.0,
    )


COUNTS = st.sampled_from(
    ["num_queued", "num_waiting", "num_running", "sessions", "committed_tokens"]
)
SESSIONS = [
    {name: make_request(name, Tenant(id="t")).session for name in "abc"[:count]}
    for count in range(4)
]


@pytest.mark.parametrize("measure", list(MEASURES))
@given(changes=st.lists(st.tuples(st.integers(0, 4), COUNTS, st.integers(0, 3), st.booleans())))
def test_a_table_is_what_a_scan_would_find(
    measure: Measure, changes: list[tuple[int, str, int, bool]]
) -> None:
    engines = [an_engine(number) for number in range(4)]
    loads = Loads()
    loads.reset(engines)
    outsider = an_engine(4)
    for slot, count, value, look in changes:
        engine = [*engines, outsider][slot]
        if count == "sessions":
            engine.sessions = SESSIONS[value]
        else:
            setattr(engine, count, value)
        loads.touch(engine)
        if look:
            scanned = [MEASURES[measure](each) for each in engines]
            assert list(loads.table(measure)) == scanned
            least = loads.least(measure, "salt")
            assert MEASURES[measure](least) == min(scanned)


def test_engines_that_came_or_went() -> None:
    loads, first, second = Loads(), an_engine(0), an_engine(1)
    loads.reset([first])
    assert list(loads.table("requests")) == [0]
    second.num_running = 3
    loads.reset([first, second])
    assert list(loads.table("requests")) == [0, 3]
    loads.reset([second])
    assert loads.least("requests", "salt") is second


def test_measures_by_hand() -> None:
    engine = an_engine(0)
    engine.num_queued, engine.num_waiting, engine.num_running = 3, 1, 4
    engine.resident_tokens = 50_000
    engine.sessions = {name: make_request(name, Tenant(id="t")).session for name in "abcdefghi"}
    assert MEASURES["requests"](engine) == 8
    assert MEASURES["sessions"](engine) == 9
    assert MEASURES["paper"](engine) == pytest.approx(0.5 * 0.5 + 0.5 * 0.5 + 0.05 * 4)


def test_a_larger_working_set_is_a_larger_load() -> None:
    small, large = an_engine(0), an_engine(1)
    large.committed_tokens = 10_000
    assert MEASURES["committed"](small) < MEASURES["committed"](large)


def test_ties_are_spread_and_always_fall_the_same_way() -> None:
    loads = Loads()
    loads.reset([an_engine(number) for number in range(4)])
    chosen = [loads.least("requests", f"request-{number}").id for number in range(400)]
    again = [loads.least("requests", f"request-{number}").id for number in range(400)]
    assert chosen == again
    assert set(Counter(chosen)) == {f"engine-{number}" for number in range(4)}
    assert min(Counter(chosen).values()) > 50


def test_the_die_is_the_same_on_every_machine() -> None:
    assert tie_break("123456789") == 0xCBF43926, "the check value of CRC-32"
    assert tie_break("request", 7) == tie_break("request/7")
