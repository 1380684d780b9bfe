"""Curves: distributions for any values, close to what was seen, borrowed where nothing was."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.core.curves import LOAN, MAX_BIN, Curve, Curves, bell, bin_of

VALUES = st.floats(0.0, 1e14, allow_nan=False)
BIN = 2 ** (1 / 4)
"""The width of a bin, as a factor."""


@given(st.lists(VALUES, min_size=1, max_size=60), st.lists(st.floats(0, 1), min_size=2))
def test_any_values_make_a_distribution(values: list[float], levels: list[float]) -> None:
    curves = Curves(bell(1_000, 2), max_keys=8)
    for value in values:
        curves.observe(("a", "b"), value)
    curve, known = curves.curve(("a", "b"))
    assert sum(curve.shares.values()) == pytest.approx(1)
    assert 0 < known < 1
    told = [curve.quantile(level) for level in sorted(levels)]
    assert told == sorted(told)
    shares = [curve.chance_by(value) for value in sorted(values)]
    assert shares == sorted(shares)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares)


@given(st.dictionaries(st.integers(0, MAX_BIN), st.floats(0.1, 10), min_size=1), st.floats(0.01, 1))
def test_quantiles_and_shares_are_inverse(shares: dict[int, float], level: float) -> None:
    curve = Curve(shares)
    assert curve.chance_by(curve.quantile(level)) == pytest.approx(level, abs=1e-6)


def test_much_seen_is_what_is_said() -> None:
    chance, curves = Random(1), Curves(bell(10, 1), max_keys=8)
    values = sorted(chance.lognormvariate(12, 1.5) for _ in range(900))
    for value in chance.sample(values, len(values)):
        curves.observe(("a",), value)
    curve, known = curves.curve(("a",))
    assert known > 0.98
    for level in (0.1, 0.5, 0.9):
        assert curve.quantile(level) == pytest.approx(values[int(level * 900)], rel=0.35)


def test_what_was_never_seen_is_as_its_parent_says_and_known_to_be() -> None:
    curves = Curves(bell(10, 1), max_keys=8)
    for _ in range(50):
        curves.observe(("a",), 5_000)
    parent, _ = curves.curve(("a",))
    assert curves.curve(("a", "b"))[0] is parent
    curves.observe(("a", "b"), 80_000)
    child, known = curves.curve(("a", "b"))
    assert known == pytest.approx(1 / (1 + LOAN), rel=0.01)
    own = child.chance_by(100_000) - child.chance_by(50_000)
    assert own == pytest.approx(known, abs=0.02)


def test_a_rare_kind_goes_on_borrowing_from_what_its_parent_learns() -> None:
    asked, silent = Curves(bell(10, 1), max_keys=8), Curves(bell(10, 1), max_keys=8)
    for curves in (asked, silent):
        curves.observe(("a", "rare"), 20)
    asked.curve(("a", "rare"))
    for curves in (asked, silent):
        for _ in range(2_000):
            curves.observe(("a", "common"), 50_000)
    told = [curves.curve(("a", "rare"))[0].quantile(0.5) for curves in (asked, silent)]
    assert told[0] == told[1] > 10_000


def test_nothing_seen_is_the_prior() -> None:
    prior = bell(1_000, 2)
    assert Curves(prior, max_keys=8).curve(("a", "b")) == (prior, 0.0)


def test_the_world_changes() -> None:
    curves = Curves(bell(10, 1), max_keys=8)
    for value in [100.0] * 3_000 + [9_000.0] * 1_500:
        curves.observe(("a",), value)
    assert curves.curve(("a",))[0].quantile(0.5) == pytest.approx(9_000, rel=BIN - 1)


def test_very_many_values_do_not_overflow() -> None:
    curves = Curves(bell(10, 1), max_keys=8)
    for number in range(30_000):
        curves.observe(("a",), 100.0 if number % 10 else 10_000.0)
    curve, known = curves.curve(("a",))
    assert curve.chance_by(1_000) == pytest.approx(0.9, abs=0.03)
    assert known > 0.99


def test_the_typical_value_is_where_most_are_and_not_in_between() -> None:
    curve = Curve({bin_of(10): 0.45, bin_of(10_000): 0.55})
    assert curve.typical == pytest.approx(10_000, rel=BIN - 1)


@given(st.lists(st.text(max_size=3), max_size=100))
def test_any_number_of_keys_is_bounded(names: list[str]) -> None:
    curves = Curves(bell(10, 1), max_keys=10)
    for name in names:
        curves.observe(("", name), 5.0)
        assert len(curves) <= 10
