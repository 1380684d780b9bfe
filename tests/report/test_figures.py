from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from tests.report.factory import run, study, sweep, workflow

from saga.report.content import Comparisons, Summaries
from saga.report.drawing import Picture, clock, png
from saga.report.figures import (
    Runs,
    ecdf,
    kv_figure,
    load_curve,
    pictures,
    seeds_figure,
    tct_figure,
)
from saga.report.metrics import PARTS, aggregate
from saga.report.statistics import compare
from saga.report.style import DARK, LIGHT, Theme, preset_styles

SUBJECT = "simulated, 2 x some engine, load 0.9"


@pytest.fixture(scope="module")
def runs() -> Runs:
    return study({"ref": 0.8, "worse": 3, "new": 0.1}, seeds=3, tasks=30)


@pytest.fixture(scope="module")
def summaries(runs: Runs) -> Summaries:
    return {name: aggregate(runs[name]) for name in runs}


@pytest.fixture(scope="module")
def comparisons(runs: Runs) -> Comparisons:
    return {name: compare(runs["ref"], runs[name]) for name in ("worse", "new")}


@pytest.fixture(scope="module")
def drawn(runs: Runs, summaries: Summaries, comparisons: Comparisons) -> list[Picture]:
    points = sweep({"ref": 0.9, "new": 1.0}, [0.5, 1.0])
    return pictures(runs, summaries, comparisons, SUBJECT, points, "simulated, sweep")


def test_all_four_are_png_in_two_appearances(drawn: list[Picture]) -> None:
    assert [picture.name for picture in drawn] == ["tct.png", "kv.png", "seeds.png", "load.png"]
    for picture in drawn:
        assert picture.light.startswith(b"\x89PNG") and picture.dark.startswith(b"\x89PNG")
        assert picture.light != picture.dark
        assert picture.alt and picture.caption


def test_what_has_no_data_has_no_picture() -> None:
    idle = run([workflow("w", None)])
    assert pictures({"p": [idle]}, {"p": aggregate([idle])}, {}, SUBJECT) == []
    assert pictures({}, {}, {}, SUBJECT) == []


def test_a_preset_in_which_nothing_finished_does_not_stop_the_others() -> None:
    runs = {"ok": [run([workflow("w", 10)])], "stuck": [run([workflow("w", None)])]}
    summaries = {name: aggregate(runs[name]) for name in runs}
    comparisons = {"stuck": compare(runs["ok"], runs["stuck"])}
    found = pictures(runs, summaries, comparisons, SUBJECT)
    assert [picture.name for picture in found] == ["tct.png"]


def test_same_data_same_bytes(summaries: Summaries) -> None:
    assert png(kv_figure(summaries, SUBJECT)) == png(kv_figure(summaries, SUBJECT))


def test_every_figure_says_under_what_circumstances(
    runs: Runs, summaries: Summaries, comparisons: Comparisons
) -> None:
    for figure in (
        tct_figure(runs, summaries, SUBJECT),
        kv_figure(summaries, SUBJECT),
        seeds_figure(comparisons, "ref", SUBJECT),
        load_curve(sweep({"ref": 0.9}, [0.5]), SUBJECT),
    ):
        assert SUBJECT in [text.get_text() for text in figure.texts]


def test_ecdf_counts_what_did_not_finish() -> None:
    records = [workflow("a", 3), workflow("b", 1), workflow("c", None), workflow("d", 2)]
    times, shares = ecdf([run([*records, workflow("warm-up", 9, measured=False)])])
    assert times.tolist() == [1, 2, 3]
    assert shares.tolist() == [0.25, 0.5, 0.75]


def test_bars_of_the_split_add_up_to_the_mean(runs: Runs, summaries: Summaries) -> None:
    axes = tct_figure(runs, summaries, SUBJECT).axes[1]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(bars) == len(PARTS) * len(summaries)
    total = sum(bar.get_width() for bar in bars)
    assert total == pytest.approx(sum(s.tct_mean_s or 0 for s in summaries.values()))


def test_kv_bars_fill_the_capacity(summaries: Summaries) -> None:
    bars = [p for p in kv_figure(summaries, SUBJECT).axes[0].patches if isinstance(p, Rectangle)]
    assert sum(bar.get_width() for bar in bars) == pytest.approx(len(summaries))


def test_every_seed_is_a_point(comparisons: Comparisons) -> None:
    axes = seeds_figure(comparisons, "ref", SUBJECT).axes[0]
    points = np.concatenate([np.asarray(c.get_offsets())[:, 0] for c in axes.collections])
    seeds = [seed.speedup_geomean for c in comparisons.values() for seed in c.per_seed]
    assert sorted(points) == pytest.approx(sorted(s for s in seeds if s is not None))


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_twenty_presets_look_different(theme: Theme) -> None:
    styles = preset_styles([f"p{i}" for i in range(20)], theme)
    assert len(set(styles.values())) == 20


@pytest.mark.parametrize(("seconds", "text"), [(0.3, "0.3 s"), (300, "5 min"), (7200, "2 h")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
