from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.factory import run, runs_with_tct

from saga.report import content
from saga.report.content import LoadPoint
from saga.report.metrics import Summary, aggregate, summarise
from saga.report.records import RunRecord
from saga.report.statistics import Comparison, compare

Results = tuple[dict[str, Summary], dict[str, Comparison]]


def results(runs: dict[str, list[RunRecord]]) -> Results:
    reference, *others = runs
    summaries = {name: aggregate(runs[name]) for name in runs}
    return summaries, {name: compare(runs[reference], runs[name]) for name in others}


def seeds(*tct_s: float | None) -> list[RunRecord]:
    return runs_with_tct({seed: [time] for seed, time in enumerate(tct_s)})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0.00"),
        (0.00421, "0.0042"),
        (0.1, "0.10"),
        (8.404, "8.40"),
        (9.996, "10.0"),
        (31.46, "31.5"),
        (99.96, "100"),
        (12_600.4, "12,600"),
    ],
)
def test_numbers_have_sensible_digits(value: float | None, text: str) -> None:
    assert content.number(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(None, "–"), (0, "0.0"), (1e-6, "<0.1"), (0.1134, "11.3"), (0.99999, ">99.9"), (1, "100.0")],
)
def test_percent_claims_neither_end_unless_exact(fraction: float | None, text: str) -> None:
    assert content.percent(fraction) == text


@given(st.floats(0, 1))
def test_percent_says_100_only_of_1_and_0_only_of_0(fraction: float) -> None:
    assert (content.percent(fraction) == "100.0") == (fraction == 1)
    assert (content.percent(fraction) == "0.0") == (fraction == 0)


def test_speedup_shows_its_interval() -> None:
    _, comparisons = results({"ref": seeds(20, 20, 40), "new": seeds(10, 10, 10)})
    assert content.speedup(comparisons["new"]) == "2.52 [2.00, 4.00]"


@pytest.mark.parametrize(
    ("reference", "other", "sentence"),
    [
        ((20, 22, 24), (10, 11, 12), "new is 2.00 times as fast as ref (95 % CI 2.00 to 2.00"),
        ((10, 11, 12), (20, 22, 24), "ref is fastest; next, new is 0.50 times as fast (95 % CI"),
        ((10, 20, 10), (20, 10, 10), "new is not clearly apart from ref: 1.00 times as fast"),
        ((30,), (10,), "new is 3.00 times as fast as ref (one seed: no confidence interval)."),
        ((30, None), (None, 10), "ref finished 1 of 2 workflows, in 30.0 s on average."),
        ((None,), (None,), "No measured workflow finished."),
    ],
)
def test_headline_claims_what_the_interval_allows(
    reference: tuple[float | None, ...], other: tuple[float | None, ...], sentence: str
) -> None:
    headline = content.headline(*results({"ref": seeds(*reference), "new": seeds(*other)}))
    assert headline.startswith(sentence)


def test_headline_picks_the_fastest_and_survives_nothing() -> None:
    found = results({"ref": seeds(8, 8), "a": seeds(4, 4), "b": seeds(2, 2), "c": seeds(3, 3)})
    assert content.headline(*found).startswith("b is 4.00 times")
    assert content.headline({}, {}) == "No measured workflow finished."
    assert content.key_figures({}, {}) == []


def test_key_figures_set_the_fastest_beside_the_reference() -> None:
    figures = content.key_figures(*results({"ref": seeds(8, 8), "new": seeds(4, 4)}))
    first = figures[0]
    assert (first.preset, first.value, first.reference) == ("new", "4.00 s", "ref: 8.00 s")


def test_caveat_counts_what_is_not_compared() -> None:
    _, comparisons = results({"ref": seeds(8, None, 8), "new": seeds(4, 4, 4)})
    assert content.caveat(comparisons).startswith("1 of 3 workflows are not in this comparison")
    _, complete = results({"ref": seeds(8, 8), "new": seeds(4, 4)})
    assert content.caveat(complete) == ""


def test_every_table_is_rectangular_and_starts_with_the_reference() -> None:
    runs = {"ref": seeds(8, 8), "new": seeds(4, None), "idle": [run(seed=0), run(seed=1)]}
    summaries, comparisons = results(runs)
    tables = content.result_tables(summaries, comparisons)
    assert len(tables) == 5
    for table in tables:
        assert [row[0] for row in table.rows] == ["ref", "new", "idle"]
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_a_remark_that_holds_for_all_is_made_once() -> None:
    runs = {"ref": seeds(8), "a": seeds(4), "b": seeds(2)}
    note = content.comparison_table("ref", results(runs)[1]).note
    assert note.count("at least 2 seeds") == 1
    assert "a:" not in note


def test_load_table_is_ordered_by_load_and_shows_gaps() -> None:
    def summaries(*tct_s: float | None) -> list[Summary]:
        return [summarise(run) for run in seeds(*tct_s)]

    points = [
        LoadPoint(load=0.9, summaries={"a": summaries(10, 40), "b": summaries(5)}),
        LoadPoint(load=0.5, summaries={"a": summaries(3, None)}),
    ]
    table = content.load_table(points)
    assert table.header == ("load", "a", "b")
    assert table.rows == (("0.5", "3.00", "–"), ("0.9", "20.0", "5.00"))
