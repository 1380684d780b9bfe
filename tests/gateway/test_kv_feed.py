"""One publisher's messages: what they mean, what is wrong with them, and what is missing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.kv import CLEARED, SIZE, message, removed, stored

from saga.gateway.kv_blocks import Held
from saga.gateway.kv_feed import KvFeed, KvNews


class Wire:
    """A feed, and the number of the next message."""

    def __init__(self, **bounds: int) -> None:
        self.feed = KvFeed(lambda name: None if name.startswith("?") else f"t/{name}", **bounds)
        self.number = 0

    def say(self, *events: Any) -> int:
        """The work that it was."""
        work = sum(self.feed.take(message(self.number, *events)))
        self.number += 1
        return work

    def held(self) -> dict[str, int]:
        """What is new of sessions; not all that was held before has gone."""
        news = self.feed.news()
        assert news is None or not news.cleared
        return {} if news is None else {held.session: held.tokens for held in news.held}


def rows(event: dict[str, Any], names: str) -> list[Any]:
    """The older form of an event."""
    return [event.get(name) for name in names.split()]


STORED = "type block_hashes parent_block_hash token_ids block_size lora_id medium"
REMOVED = "type block_hashes medium"

# ---- what events mean


@pytest.mark.parametrize(
    "form",
    [
        lambda event: event,
        lambda event: {name: event[name] for name in reversed(event)} | {"new_in_2030": [{}]},
        lambda event: rows(event, STORED if "token_ids" in event else REMOVED),
        lambda event: rows(event, STORED if "token_ids" in event else REMOVED)[
            : 5 if "token_ids" in event else 2
        ],
        lambda event: (
            rows(event, f"{STORED} lora_name extra_keys group_idx kv_cache_spec_kind window new")
            if "token_ids" in event
            else rows(event, f"{REMOVED} group_idx new")
        ),
    ],
    ids=["map", "map in any order", "array", "array of 2025", "array of 2026"],
)
def test_every_release_is_understood(form: Any) -> None:
    wire = Wire()
    wire.say(form(stored([b"a" * 32, 2], session_id="s")))
    wire.say(form(removed([2])))
    assert wire.feed.counts == {"stored": 2, "removed": 1}
    assert (len(wire.feed.blocks), wire.feed.num_malformed) == (1, 0)


def test_sessions_are_known_by_what_engines_call_them() -> None:
    wire = Wire()
    wire.say(
        stored([1, 2], session_id="s"), stored([3], 2, session_id="?"), stored([4], 2), removed([2])
    )
    assert wire.held() == {"t/s": SIZE}


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"medium": "CPU"},
        {"medium": "STORAGE"},
        {"kv_cache_spec_kind": "sliding_window"},
        {"kv_cache_spec_kind": "mamba"},
        {"kv_cache_spec_kind": None, "component_type": "swa"},
    ],
)
def test_kv_that_is_no_prefix_in_gpu_memory_does_not_count(elsewhere: dict[str, Any]) -> None:
    wire = Wire()
    wire.say(stored([1, 2], session_id="s"))
    wire.say(stored([3], 2, session_id="s", **elsewhere))
    if "medium" in elsewhere:
        wire.say(removed([2], **elsewhere))
    assert wire.held() == {"t/s": 2 * SIZE}


def test_the_first_group_of_a_hybrid_model_stands_for_all() -> None:
    wire = Wire()
    wire.say(stored([1, 2], group_idx=1, session_id="s"))
    wire.say(stored([1, 2], group_idx=2, session_id="s"))
    wire.say(removed([2], group_idx=2))
    assert wire.held() == {"t/s": 2 * SIZE}
    wire.say(removed([2], group_idx=1))
    assert wire.held() == {"t/s": SIZE}


def test_engines_of_saga_tell_of_sessions() -> None:
    wire = Wire()
    wire.say(["stored", "t/s", 64], ["retained", "t/s", 64], ["evicted", "t/r", 0])
    wire.say(["released", "t/s", 64])
    assert wire.feed.news() == KvNews(False, [Held("t/s", 64, False), Held("t/r", 0, True)])
    assert wire.feed.news() is None
    assert wire.feed.counts == dict.fromkeys(
        ["session_stored", "session_retained", "session_evicted", "session_released"], 1
    )


def test_what_was_lost_and_made_again_between_two_looks_is_no_loss() -> None:
    wire = Wire()
    wire.say(stored([1, 2], session_id="s"))
    wire.held()
    wire.say(removed([2]), stored([2], 1, session_id="s"))
    assert wire.feed.news() == KvNews(False, [Held("t/s", 2 * SIZE, False)])


# ---- what is cleared, missing, malformed


def test_a_cleared_cache_is_told_before_what_came_after() -> None:
    wire = Wire()
    wire.say(stored([1], session_id="old"))
    wire.say(CLEARED, stored([1, 2], session_id="new"))
    assert wire.feed.news() == KvNews(True, [Held("t/new", 2 * SIZE, False)])


def test_missed_messages_end_all_claims() -> None:
    wire = Wire()
    wire.say(stored([1, 2], session_id="s"))
    wire.held()
    wire.number += 1
    wire.say(removed([2]))
    assert (wire.held(), wire.feed.num_gaps, wire.feed.num_restarts) == ({}, 1, 0)
    wire.say(stored([3], 2, session_id="s"), stored([1], session_id="r"), removed([1]))
    assert wire.held() == {"t/r": 0}


@pytest.mark.parametrize("number", [0, 1])
def test_an_engine_that_counts_anew_has_started_anew(number: int) -> None:
    wire = Wire()
    wire.say(stored([1, 2], session_id="old"))
    wire.say()
    wire.number = number
    wire.say(stored([1], session_id="new"))
    assert wire.feed.news() == KvNews(True, [Held("t/new", SIZE, False)])
    assert (wire.feed.num_gaps, wire.feed.num_restarts) == (0, 1)


def test_who_comes_late_has_missed_nothing() -> None:
    wire = Wire()
    wire.number = 1_000
    wire.say(stored([1], session_id="s"))
    assert (wire.held(), wire.feed.num_gaps) == ({"t/s": SIZE}, 0)


def test_malformed_messages_are_counted_and_skipped() -> None:
    wire = Wire()
    wire.say(stored([1], session_id="s"))
    number = (1).to_bytes(8, "big")
    for frames in (
        [],
        [b"", number],
        [b"", number, b"", b""],
        [b"", b"\1", msgspec.msgpack.encode([1.0, []])],
        [b"", number, b"\xc1"],
        [b"", number, msgspec.msgpack.encode({"ts": 1.0})],
        [b"", number, msgspec.msgpack.encode([1.0, 7])],
    ):
        assert sum(wire.feed.take(frames)) == 1
    assert (wire.feed.num_malformed, wire.feed.num_messages) == (7, 1)
    assert wire.held() == {"t/s": SIZE}


def test_malformed_events_do_not_hide_the_others() -> None:
    wire = Wire()
    bad: list[Any] = [
        *(None, 1, "BlockStored", [], {}, [7], {"type": 7}, ["BlockRemoved"], ["stored", "t/s"]),
        *(stored([1], block_size=0), stored([1], block_size=1 << 30), stored([1.5])),
        *(stored([b"x" * 65]), removed([None]), ["evicted", "t/s", -1], ["evicted", 1, 1]),
    ]
    unknown: list[Any] = [{"type": "BlockInactive", "block_hashes": "?"}, ["BlockMoved", 1, 2]]
    wire.say(*bad, *unknown, stored([1], session_id="s"))
    assert (wire.held(), wire.feed.num_malformed) == ({"t/s": SIZE}, len(bad))


def test_work_is_told_bit_by_bit() -> None:
    wire = Wire()
    assert wire.say() == 1
    assert wire.say(stored(list(range(100))), removed(list(range(50))), CLEARED) == 1 + 101 + 51 + 1


packed = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda some: st.lists(some) | st.dictionaries(st.text(), some),
    max_leaves=10,
)


@given(st.lists(packed), st.lists(st.binary(max_size=12), max_size=4))
def test_nothing_that_is_sent_raises(events: list[Any], frames: list[bytes]) -> None:
    wire = Wire(max_blocks=10, max_sessions=10)
    wire.say(*events)
    wire.say(*({"type": kind, "block_hashes": events} for kind in ("BlockStored", "BlockRemoved")))
    for _ in wire.feed.take(frames):
        pass
    for _ in wire.feed.take([b"", bytes(8), *frames[:1]]):
        pass
    wire.feed.news()
