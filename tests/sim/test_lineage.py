"""Which prompts share which blocks, against prompts written out token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, count

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.factory import chat, step, workflow

from saga.sim.latency import hit_tokens
from saga.sim.lineage import ENDLESS, Content, Lineage, Span, reusable_tokens

SIZE = 4
"""Block size of these tests."""


def block_of(path: Sequence[Span], block: int) -> tuple[Content, int]:
    """What identifies a prompt's block."""
    for span in path:
        if span.content.start <= block < span.end:
            return span.content, block
    raise AssertionError(f"the path has no block {block}")


def test_a_session_that_keeps_all_stays_in_one_content() -> None:
    lineage = Lineage(1, "a", SIZE)
    lineage.begin(None, 0)
    first = lineage.advance(step(0, 10, 5))
    second = lineage.advance(step(15, 6, 1))
    assert first == second
    assert [(span.content.start, span.end) for span in first] == [(0, ENDLESS)]
    assert lineage.context_tokens == 22


def test_a_declared_prefix_is_shared_in_whole_blocks_and_lives_for_ever() -> None:
    prefix = Content(0, None, None)
    paths = []
    for number in (1, 2):
        lineage = Lineage(number, f"s{number}", SIZE)
        lineage.begin(prefix, 11)  # two whole blocks and three tokens
        paths.append(lineage.advance(step(11, 9, 1)))
        lineage.end()
    assert [span.content is prefix for span in paths[0]] == [True, False]
    assert paths[0][0] == paths[1][0] == Span(prefix, 2)
    assert paths[0][1].content.start == 2
    assert prefix.live_end == ENDLESS
    assert paths[0][1].content.live_end == 0, "nobody asks for a closed session's own blocks"


def test_a_prefix_shorter_than_a_block_is_not_shared() -> None:
    lineage = Lineage(1, "a", SIZE)
    lineage.begin(Content(0, None, None), 3)
    assert [span.content.session for span in lineage.path] == ["a"]


def test_a_cut_ends_the_claim_on_what_was_cut_off() -> None:
    lineage = Lineage(1, "a", SIZE)
    lineage.begin(None, 0)
    (old,) = lineage.advance(step(0, 30, 10))
    path = lineage.advance(step(21, 5, 1))  # keeps five whole blocks and one token of the sixth
    assert path[0] == Span(old.content, 5)
    assert path[1].content.start == 5
    assert path[1].content.parent is old.content
    assert old.content.live_end == 5
    assert old.content in lineage.changed


def test_keeping_all_but_the_last_token_is_a_cut() -> None:
    lineage = Lineage(1, "a", SIZE)
    lineage.begin(None, 0)
    lineage.advance(step(0, 30, 10))
    path = lineage.advance(step(39, 5, 1))
    assert [span.content.start for span in path] == [0, 9]


def test_a_cut_to_nothing_shares_nothing() -> None:
    lineage = Lineage(1, "a", SIZE)
    lineage.begin(None, 0)
    (old,) = lineage.advance(step(0, 30, 10))
    path = lineage.advance(step(3, 5, 1))
    assert [span.content.start for span in path] == [0]
    assert path[0].content is not old.content


def test_a_fork_claims_the_parents_blocks_until_it_ends() -> None:
    parent, child = Lineage(1, "p", SIZE), Lineage(2, "c", SIZE)
    parent.begin(None, 0)
    (own,) = parent.advance(step(0, 30, 10))
    child.fork(parent, 17)
    assert child.context_tokens == 17
    assert child.path[0] == Span(own.content, 4)
    parent.end()
    assert own.content.live_end == 4
    child.end()
    assert own.content.live_end == 0


def test_a_fork_asks_for_no_more_than_the_parent_has() -> None:
    parent, child = Lineage(1, "p", SIZE), Lineage(2, "c", SIZE)
    parent.begin(None, 0)
    parent.advance(step(0, 6, 2))
    child.fork(parent, 1_000)
    assert child.context_tokens == 8


# ---- against token lists


@dataclass
class Twin:
    """A lineage and the same session with every token written out; each new token is unique."""

    lineage: Lineage
    context: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    path: tuple[Span, ...] = ()
    open: bool = True


class Family:
    def __init__(self) -> None:
        self.fresh = count()
        self.prefix_tokens = [next(self.fresh) for _ in range(50)]
        self.prefix = Content(0, None, None)
        self.twins: list[Twin] = []

    def new(self) -> Lineage:
        return Lineage(len(self.twins), f"s{len(self.twins)}", SIZE)

    def begin(self, prefix_tokens: int) -> None:
        lineage = self.new()
        lineage.begin(self.prefix, prefix_tokens)
        self.twins.append(Twin(lineage, self.prefix_tokens[:prefix_tokens]))

    def fork(self, parent: Twin, tokens: int) -> None:
        lineage = self.new()
        lineage.fork(parent.lineage, tokens)
        self.twins.append(Twin(lineage, parent.context[:tokens]))

    def advance(self, twin: Twin, kept: int, new: int, output: int) -> None:
        kept = min(kept, len(twin.context))
        twin.path = twin.lineage.advance(step(kept, new, output))
        twin.prompt = twin.context[:kept] + [next(self.fresh) for _ in range(new)]
        twin.context = twin.prompt + [next(self.fresh) for _ in range(output)]


@settings(max_examples=100)
@given(st.data())
def test_blocks_are_shared_exactly_where_all_tokens_before_are(
    data: st.DataObject,
) -> None:
    family = Family()
    family.begin(data.draw(st.sampled_from([0, 8, 13])))
    for _ in range(data.draw(st.integers(1, 12))):
        deed = data.draw(st.sampled_from(["advance", "advance", "advance", "begin", "fork", "end"]))
        twin = data.draw(st.sampled_from(family.twins))
        if deed == "begin":
            family.begin(data.draw(st.sampled_from([0, 13])))
        elif deed == "fork" and twin.context and twin.open:
            family.fork(twin, data.draw(st.integers(1, len(twin.context))))
        elif deed == "end":
            twin.lineage.end()
            twin.open = False
        elif deed == "advance" and twin.open:
            kept = data.draw(st.one_of(st.just(10**6), st.integers(0, 40)))
            family.advance(twin, kept, data.draw(st.integers(1, 15)), data.draw(st.integers(1, 9)))
    for one, other in combinations([twin for twin in family.twins if twin.path], 2):
        whole = min(len(one.prompt), len(other.prompt)) // SIZE
        for block in range(whole):
            same_tokens = one.prompt[: (block + 1) * SIZE] == other.prompt[: (block + 1) * SIZE]
            same_block = block_of(one.path, block) == block_of(other.path, block)
            assert same_tokens == same_block, f"block {block} of {one} and {other}"
    _check_claims(family)


def _check_claims(family: Family) -> None:
    """A content lives up to the farthest block that any open session's path has in it."""
    wanted: dict[Content, int] = {}
    for twin in family.twins:
        for span in twin.lineage.path if twin.open else ():
            wanted[span.content] = max(wanted.get(span.content, 0), span.end)
    for twin in family.twins:
        for span in twin.path:
            if span.content.session is not None:
                assert span.content.live_end == wanted.get(span.content, 0)


# ---- reusable tokens


def test_reusable_tokens_by_hand() -> None:
    """40 + 9 tokens: the last output token is never computed, so 48 are; 12 whole blocks of 4."""
    script = chat((40, 9), (3, 1))
    assert reusable_tokens(script, 0, SIZE) == 0
    assert reusable_tokens(script, 1, SIZE) == 48


def test_the_last_prompt_token_is_always_computed() -> None:
    script = chat((40, 25), (1, 1))  # second prompt: 66 tokens, 64 computed before
    assert reusable_tokens(script, 1, SIZE) == 64
    script = chat((40, 24), (1, 1))  # second prompt: 65 tokens, 63 computed before
    assert reusable_tokens(script, 1, SIZE) == 60


def test_what_was_cut_off_is_not_reusable() -> None:
    script = chat((40, 25), (1, 1))
    cut = chat((40, 25))
    cut = type(cut)(steps=(script.steps[0], step(22, 30, 1)))
    assert reusable_tokens(cut, 1, SIZE) == 20


@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=6),
    size=st.integers(1, 16),
)
def test_reusable_is_what_hits_when_all_is_kept(sizes: list[tuple[int, int]], size: int) -> None:
    script = chat(*sizes)
    hits = hit_tokens(workflow("w", script), size)[0]
    assert hits == [reusable_tokens(script, index, size) for index in range(len(sizes))]
    for hit, one in zip(hits, script.steps, strict=True):
        assert hit % size == 0
        assert 0 <= hit < one.prompt_tokens
