"""Names of blocks say what chained hashes of their tokens would say."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from tests.sim.factory import step

from saga.engine.vllm.simulated.names import BlockNames
from saga.sim.lineage import Content, Lineage, Span

SIZE = 16


def lineage(number: int, prefix: Content | None = None, tokens: int = 0) -> Lineage:
    made = Lineage(number, f"session {number}", SIZE)
    made.begin(prefix, tokens)
    return made


def test_equal_prefixes_have_equal_names_and_nothing_else_has() -> None:
    names, prefix = BlockNames(), Content(0, None, None)
    one, other = lineage(1, prefix, 4 * SIZE), lineage(2, prefix, 4 * SIZE)
    ones, others = names.of(one.path, 0, 8), names.of(other.path, 0, 8)
    assert len(set(ones)) == len(ones) == 8
    assert ones[:4] == others[:4]
    assert set(ones[4:]).isdisjoint(others)


def test_a_fork_shares_what_it_was_forked_with_and_a_cut_what_was_kept() -> None:
    names, parent, child = BlockNames(), lineage(1), Lineage(2, "child", SIZE)
    parent.advance(step(0, 70, 30))
    before = names.of(parent.path, 0, 6)
    child.fork(parent, 50)
    assert names.of(child.path, 0, 6)[:3] == before[:3]
    assert set(names.of(child.path, 3, 6)).isdisjoint(before)
    parent.advance(step(40, 60, 10))
    assert names.of(parent.path, 0, 6)[:2] == before[:2]
    assert set(names.of(parent.path, 2, 6)).isdisjoint(before)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 45))
def test_names_do_not_depend_on_the_order_in_which_they_are_asked_for(
    ends: list[int], begin: int
) -> None:
    names, prefix = BlockNames(), Content(0, None, None)
    path = lineage(1, prefix, 10 * SIZE).path
    whole: dict[int, bytes] = {}
    for end in ends:
        for block, name in enumerate(names.of(path, begin, end), begin):
            assert whole.setdefault(block, name) == name
            content, number = names.find(name + b"group")
            assert number == block
            assert content is path[block >= 10].content
    assert len(set(whole.values())) == len(whole)


def test_what_is_forgotten_gets_other_names_and_is_still_known_by_the_old_ones() -> None:
    names, content = BlockNames(), Content(0, None, "session")
    path = (Span(content, 9),)
    before = names.of(path, 0, 3)
    names.forget([content, Content(0, None, "unknown")])
    assert set(names.of(path, 0, 3)).isdisjoint(before)
    assert names.find(before[2]) == (content, 2)


def test_a_request_is_told_only_the_names_of_blocks_that_it_filled_since() -> None:
    names, path = BlockNames(), lineage(1).path
    hasher = names.hasher(path, SIZE)
    request = SimpleNamespace(block_hashes=[], num_tokens=SIZE - 1)
    assert hasher(request) == []
    request.num_tokens = 3 * SIZE + 1
    request.block_hashes += hasher(request)
    assert request.block_hashes == names.of(path, 0, 3)
    assert hasher(request) == []
