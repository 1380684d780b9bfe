"""Hints of requests: what is read, and what is ignored without harm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga import wire
from saga.engine.vllm.hints import MAX_TTL_S, NONE, HintReader, Hints

ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def read(extra: dict[str, Any] | None = None, native: object = None) -> Hints:
    return HintReader().read(extra, native)


def test_all_of_them() -> None:
    extra = {
        wire.HINT_SESSION: "t/a",
        wire.HINT_TTL: "2.5",
        wire.HINT_SCORE: 0.25,
        wire.HINT_RETURN: 3,
        wire.HINT_FINAL: 1,
        "agentic_context": {"session_id": "another"},
    }
    assert read(extra, "native") == Hints(
        session="t/a", ttl_s=2.5, score=0.25, return_s=3.0, final=True
    )


def test_nothing() -> None:
    assert read() is NONE
    assert read({}, 7) is NONE
    assert read({}, "native") == Hints(session="native")
    assert read({"other": 1}, "native") == Hints(session="native")


@pytest.mark.parametrize("final", [True, 1, "1", "true"])
def test_the_end_of_a_session(final: object) -> None:
    assert read({wire.HINT_FINAL: final}).final


def test_no_time_is_the_end_too() -> None:
    assert read({wire.HINT_TTL: 0}).final
    assert not read({wire.HINT_TTL: 0.001}).final
    assert not read({wire.HINT_FINAL: 0, wire.HINT_TTL: 1}).final


def test_a_session_that_did_not_ask() -> None:
    assert read({wire.HINT_PREFETCH: 1}) == Hints(prefetch=True)
    assert not read({wire.HINT_PREFETCH: 0}).prefetch


def test_what_is_too_much_is_cut() -> None:
    hints = read({wire.HINT_TTL: 1e300, wire.HINT_RETURN: 1e9, wire.HINT_SCORE: 10})
    assert (hints.ttl_s, hints.return_s, hints.score) == (MAX_TTL_S, MAX_TTL_S, 1.0)
    assert read({wire.HINT_SCORE: -1}).score == 0.0


@given(st.dictionaries(st.sampled_from(wire.HINTS), ANYTHING), ANYTHING)
def test_whatever_comes_what_is_read_is_sound(extra: dict[str, Any], native: object) -> None:
    hints = read(extra, native)
    assert hints.session is None or 0 < len(hints.session) <= 256
    assert hints.ttl_s is None or 0 <= hints.ttl_s <= MAX_TTL_S
    assert hints.return_s is None or 0 <= hints.return_s <= MAX_TTL_S
    assert hints.score is None or 0 <= hints.score <= 1


def test_there_is_one_warning_and_it_shows_nothing_of_the_value(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = HintReader()
    for _ in range(3):
        reader.read({wire.HINT_TTL: "my password", wire.HINT_SCORE: [], wire.HINT_SESSION: ""}, 0)
    assert len(caplog.records) == 1
    assert "password" not in caplog.text
