from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tests.report.factory import SECOND, run, study, workflow

from saga.report.content import Summaries
from saga.report.drawing import Picture
from saga.report.fairness_figures import (
    MOST_GROUPS,
    MOST_PANELS,
    NUM_WINDOWS,
    OTHERS,
    Runs,
    classes_figure,
    fairness_pictures,
    groups_of,
    leads_figure,
    shares_figure,
    shares_over_time,
)
from saga.report.metrics import aggregate
from saga.report.records import TenantSeries, TimeSeries
from saga.report.style import DARK

SUBJECT = "simulated, 2 x some engine, load 0.9"


@pytest.fixture(scope="module")
def runs() -> Runs:
    return study({"ref": 0.8, "new": 0.1}, seeds=2, tasks=30)


@pytest.fixture(scope="module")
def summaries(runs: Runs) -> Summaries:
    return {name: aggregate(runs[name]) for name in runs}


def drawn(runs: Runs) -> list[Picture]:
    return fairness_pictures(runs, {name: aggregate(runs[name]) for name in runs}, SUBJECT)


def series_of(**tenants: list[int]) -> TimeSeries:
    """A sample every second of service in seconds; all tenants are entitled to the same."""
    (num,) = {len(services) for services in tenants.values()}
    return TimeSeries(
        at_us=array("q", (second * SECOND for second in range(num))),
        tenants={
            name: TenantSeries(
                service_us=array("q", (service * SECOND for service in services)),
                committed_tokens=array("q", [0] * num),
                num_waiting=array("q", [0] * num),
                lead_us=array("d", [0] * num),
                entitlement=array("d", [1 / len(tenants)] * num),
            )
            for name, services in tenants.items()
        },
    )


def test_all_three_are_png_in_two_appearances(runs: Runs) -> None:
    found = drawn(runs)
    assert [one.name for one in found] == ["classes.png", "shares.png", "leads.png"]
    for one in found:
        assert one.light.startswith(b"\x89PNG") and one.dark.startswith(b"\x89PNG")
        assert one.light != one.dark
        assert one.alt and one.caption


def test_one_tenant_has_no_pictures() -> None:
    assert drawn({"p": [run([workflow("w", 10)], series=series_of(t=[0, 1]))]}) == []
    assert drawn({}) == []
    assert drawn({"p": []}) == []


def test_what_has_no_data_has_no_picture() -> None:
    """Tenants of one class have no picture of classes, nor of leads that nobody had."""
    of = [workflow("w0", 10, tenant="a"), workflow("w1", 20, tenant="b")]
    assert drawn({"p": [run(of)]}) == []
    served = run(of, series=series_of(a=[0, 1], b=[0, 2]))
    assert [one.name for one in drawn({"p": [served], "idle": [run(of)]})] == ["shares.png"]


def test_figures_say_under_what_circumstances(runs: Runs, summaries: Summaries) -> None:
    groups = groups_of(runs)
    figures: list[Figure] = [
        classes_figure(runs, summaries, SUBJECT, DARK),
        shares_figure(runs, groups, SUBJECT),
        leads_figure(runs, groups, SUBJECT),
    ]
    for figure in figures:
        assert SUBJECT in [text.get_text() for text in figure.texts]
    assert [axes.get_title(loc="left") for axes in figures[1].axes] == [
        "ref, seed 1",
        "new, seed 1",
    ]


def test_presets_beyond_the_panels_are_left_out(runs: Runs) -> None:
    many = {f"p{number}": runs["ref"] for number in range(MOST_PANELS + 2)}
    assert len(shares_figure(many, groups_of(many), SUBJECT).axes) == MOST_PANELS


def test_tenants_are_drawn_by_class_or_by_name_or_as_others() -> None:
    def of(classes: dict[str, str]) -> Runs:
        tenants = [workflow(t, 10, tenant=t, tenant_class=c) for t, c in classes.items()]
        return {"p": [run(tenants)]}

    assert groups_of(of({"a": "x", "b": "y"})) == {"a": "x", "b": "y"}
    assert groups_of(of({"a": "x", "b": "x"})) == {"a": "a", "b": "b"}
    few = dict.fromkeys("abcdef"[:MOST_GROUPS], "x")
    assert OTHERS not in groups_of(of(few)).values()
    many = groups_of(of(dict.fromkeys("abcdefghi", "x")))
    assert len(set(many.values())) == MOST_GROUPS
    assert many["a"] == "a" and many["i"] == many["h"] == OTHERS


def test_shares_of_each_window() -> None:
    """a gets 3 of the first 4 seconds, then nobody gets anything, then b alone."""
    series = series_of(a=[0, 3, 3, 3], b=[0, 1, 1, 5])
    hours, shares, entitled = shares_over_time(series, {"a": "A", "b": "B"})
    assert (3600 * hours).tolist() == pytest.approx([0, 1, 2, 3])
    np.testing.assert_array_equal(shares["A"], [0.75, np.nan, 0])
    np.testing.assert_array_equal(shares["B"], [0.25, np.nan, 1])
    assert entitled["A"].tolist() == entitled["B"].tolist() == [0.5, 0.5, 0.5]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1).map(
        lambda gains: np.cumsum([(0, 0, 0), *gains], axis=0).T.tolist()
    )
)
def test_law_shares_add_up_to_1_where_there_is_service(services: list[list[int]]) -> None:
    series = series_of(**dict(zip("abc", services, strict=True)))
    hours, shares, entitled = shares_over_time(series, {"a": "x", "b": "x", "c": "y"})
    assert len(hours) - 1 <= NUM_WINDOWS
    total = shares["x"] + shares["y"]
    given_out = np.diff(np.sum(services, axis=0)[np.round(3600 * hours).astype(int)])
    np.testing.assert_array_equal(np.isnan(total), given_out == 0)
    assert total[given_out > 0] == pytest.approx(1)
    assert entitled["x"] == pytest.approx(2 / 3)
