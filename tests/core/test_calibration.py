"""Levels keep their word, whatever the model and the values."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.core.calibration import CAUTIOUS, LEVELS, Calibration, translate


def covered(shares: list[float]) -> list[float]:
    """How often each level held, asked before each value was told."""
    calibration, held = Calibration(), [0] * len(LEVELS)
    for share in shares:
        for number, asked in enumerate(calibration.asked()):
            held[number] += share <= asked
        calibration.learn(share)
    return [count / len(shares) for count in held]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x,
        lambda x: x**1.5,  # a model that expects too much
        lambda x: 0.5 + (x - 0.5) * 0.7,  # one that is too unsure
        lambda x: 0.5 + (x - 0.5) * (0.8 if x < 0.7 else 1.0),
    ],
    ids=["right", "too large", "unsure", "bent"],
)
def test_levels_hold_though_the_model_is_wrong(wrong: object) -> None:
    chance = Random(2)
    assert callable(wrong)
    shares = [wrong(chance.random()) for _ in range(6_000)]
    for level, share in zip(LEVELS, covered(shares), strict=True):
        assert share == pytest.approx(level, abs=0.02)


def test_values_in_one_lump_do_not_defeat_it() -> None:
    chance = Random(3)
    shares = [0.3 if chance.random() < 0.6 else chance.random() for _ in range(6_000)]
    held = covered(shares)
    within = held[LEVELS.index(0.9)] - held[LEVELS.index(0.1)]
    assert within == pytest.approx(0.8, abs=0.03)


@given(st.lists(st.floats(0, 1), max_size=300))
def test_levels_never_cross_and_stay_levels(shares: list[float]) -> None:
    calibration = Calibration()
    assert calibration.asked() == CAUTIOUS
    for share in shares:
        calibration.learn(share)
        asked = calibration.asked()
        assert list(asked) == sorted(asked)
        assert 0 < asked[0] <= asked[-1] < 1


@given(st.floats(0, 1), st.lists(st.floats(0.01, 0.99), min_size=7, max_size=7, unique=True))
def test_translation_is_monotone_and_keeps_the_ends(level: float, other: list[float]) -> None:
    go = tuple(sorted(other))
    assert translate(0.0, LEVELS, go) == 0.0
    assert translate(1.0, LEVELS, go) == pytest.approx(1.0)
    assert translate(level, LEVELS, go) <= translate(min(1.0, level + 0.01), LEVELS, go) + 1e-12
    for one, two in zip(LEVELS, go, strict=True):
        assert translate(one, LEVELS, go) == pytest.approx(two)
