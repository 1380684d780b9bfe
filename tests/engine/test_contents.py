"""The radix tree by hand; against a naive model it is tested through the engine."""

from __future__ import annotations

from typing import Any

from tests.engine.factory import BLOCK, blocks

from saga.engine.contents import ContentTree, Use
from saga.sim.lineage import ENDLESS, Content


def tree(*, max_blocks: int = 1_000, resident: set[Content] | None = None) -> ContentTree:
    return ContentTree(
        block_bytes=BLOCK,
        max_bytes=max_blocks * BLOCK,
        resident=lambda content: content in (resident or set()),
    )


def begin(
    tree: ContentTree, prompt: str, session: str | None = None, answer: str = "", **options: Any
) -> Use:
    return tree.begin(
        blocks(prompt + answer), prompt_blocks=len(prompt), session=session, **options
    )


def ask(tree: ContentTree, prompt: str, session: str | None = None, **options: Any) -> Use:
    """A request that computed all of its text."""
    use = begin(tree, prompt, session, **options)
    end(tree, use)
    return use


def end(tree: ContentTree, use: Use) -> None:
    computed = len(use.text) // BLOCK
    tree.end(use, computed, computed)


def ends(use: Use) -> list[int]:
    return [span.end for span in use.path]


def test_a_session_goes_on_in_its_own_content() -> None:
    known = tree()
    first, second = ask(known, "ab", "s"), ask(known, "abcd", "s")
    assert first.path == second.path
    assert ends(second) == [ENDLESS]
    assert second.computed_blocks == 2


def test_a_conversation_that_was_changed_forks_where_it_differs() -> None:
    known = tree()
    first, second = ask(known, "abcd", "s"), ask(known, "abXY", "s")
    assert ends(second) == [2, ENDLESS]
    assert second.path[0].content is first.path[0].content
    assert second.path[1].content.start == 2


def test_what_many_begin_with_belongs_to_nobody() -> None:
    known = tree()
    first, second = (
        ask(known, "SSab", "s", shared_blocks=2),
        ask(known, "SScd", "t", shared_blocks=2),
    )
    assert ends(first) == ends(second) == [2, ENDLESS]
    assert first.path[0] == second.path[0]
    assert [span.content.session for span in first.path] == [None, "s"]
    assert [span.content.session for span in second.path] == [None, "t"]


def test_another_session_continues_in_a_content_of_its_own() -> None:
    known = tree()
    ask(known, "ab", "s")
    assert ends(ask(known, "abcd", "t")) == [2, ENDLESS]


def test_two_at_a_time_do_not_append_to_the_same_content() -> None:
    known = tree()
    ask(known, "ab", "s")
    first, second = begin(known, "abcd", "s"), begin(known, "abcdef", "s")
    assert ends(first) == [ENDLESS]
    assert ends(second) == [4, ENDLESS]


def test_an_answer_is_found_when_it_is_complete() -> None:
    known = tree()
    first = begin(known, "ab", "s", answer="cd")
    assert ends(begin(known, "abcd", "t")) == [2, ENDLESS]
    end(known, first)
    found = ask(known, "abcd", "u")
    assert (ends(found), found.computed_blocks) == ([4, ENDLESS], 4)


def test_an_answer_that_was_given_before_is_shared() -> None:
    known = tree()
    ask(known, "ab", "s", answer="cd")
    assert ends(ask(known, "ab", "t", answer="cdef")) == [4, ENDLESS]
    assert begin(known, "abcdefgh").computed_blocks == 6


def test_equal_answers_side_by_side_do_no_harm() -> None:
    known = tree()
    first, second = begin(known, "ab", "t", answer="cd"), begin(known, "ab", "u", answer="cd")
    end(known, second)
    end(known, first)
    assert begin(known, "abcdef", "t").computed_blocks == 4


def test_what_nobody_computed_is_not_called_computed() -> None:
    known = tree()
    left_early = begin(known, "abcd", "s")
    known.end(left_early, 4, 1)
    assert begin(known, "abcdef", "s").computed_blocks == 1


def test_what_may_be_left_in_the_cache_is_known() -> None:
    """Else the session's next request would take another one's KV for its own."""
    known = tree()
    left_early = begin(known, "ab", "s", answer="cd")
    known.end(left_early, 3, 2)
    other = begin(known, "abXY", "s")
    assert ends(other) == [2, ENDLESS]
    assert other.path[1].content is not left_early.path[0].content


def test_salts_separate() -> None:
    known = tree()
    ask(known, "abcd")
    assert begin(known, "abcd", salt="tenant").computed_blocks == 0


def test_what_is_neither_resident_nor_in_use_is_forgotten_oldest_first() -> None:
    resident: set[Content] = set()
    known = tree(max_blocks=10, resident=resident)
    resident.add(ask(known, "aaa", "a").path[0].content)
    used = begin(known, "bbb", "b")
    ask(known, "ccc", "c")
    ask(known, "ddd", "d")
    assert known.num_bytes == 9 * BLOCK, "c is gone; the others are resident or were in use"
    assert begin(known, "aaa").computed_blocks == 3
    end(known, used)
    assert begin(known, "bbb").computed_blocks == 3


def test_memory_is_bounded_whatever_is_asked() -> None:
    """What is in use (28 blocks here) is not forgotten: at most the double of it is kept."""
    known = tree(max_blocks=50)
    for number in range(500):
        ask(known, f"{number:03d}" * 5, f"session {number}", shared_blocks=1)
        assert known.num_bytes <= 56 * BLOCK
    assert len(known) < 50
