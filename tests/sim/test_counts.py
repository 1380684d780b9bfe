from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from saga.report.records import TokenCounts
from saga.sim.counts import Counts

NUMBERS = st.integers(0, 10**15)
COUNTS = st.builds(
    Counts,
    st.builds(TokenCounts, **{field.name: NUMBERS for field in fields(TokenCounts)}),
    **{field.name: NUMBERS for field in fields(Counts)[1:]},
)


def test_adding_up_two_engines() -> None:
    one = Counts(TokenCounts(prompt=10, hit=6, new=4), busy_ps=7, num_evictions=1)
    two = Counts(TokenCounts(prompt=5, regenerated=5), regenerated_ps=3, evicted_blocks=2)
    assert one + two == Counts(
        TokenCounts(prompt=15, hit=6, new=4, regenerated=5),
        regenerated_ps=3,
        busy_ps=7,
        evicted_blocks=2,
        num_evictions=1,
    )
    assert one == Counts(TokenCounts(prompt=10, hit=6, new=4), busy_ps=7, num_evictions=1)


@given(COUNTS, COUNTS)
def test_law_every_field_is_added(one: Counts, two: Counts) -> None:
    both = one + two
    for field in fields(Counts)[1:]:
        assert getattr(both, field.name) == getattr(one, field.name) + getattr(two, field.name)
    for field in fields(TokenCounts):
        assert getattr(both.tokens, field.name) == (
            getattr(one.tokens, field.name) + getattr(two.tokens, field.name)
        )


@given(COUNTS, COUNTS, COUNTS)
def test_law_a_sum_of_engines_does_not_depend_on_their_order(
    one: Counts, two: Counts, three: Counts
) -> None:
    assert sum([one, two, three], Counts()) == sum([three, one, two], Counts())
