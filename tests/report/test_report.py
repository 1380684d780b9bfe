from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.report.factory import run, study, sweep, workflow

from saga.report.records import RunRecord
from saga.report.report import Report


def report(runs: dict[str, list[RunRecord]], **changes: Any) -> Report:
    parameters = {"cluster": "2 x engine", "workload": "coding", "load": "0.9"}
    return Report(title="A study", parameters=parameters, runs=runs, wall_s=2.0, **changes)


@pytest.fixture(scope="module")
def full() -> Report:
    runs = study({"ref": 0.8, "new": 0.1}, seeds=3, tasks=20)
    return report(runs, load_points=sweep({"ref": 0.9, "new": 1.0}, [0.5, 1.0]))


def printed(study: Report) -> str:
    console = Console(width=100, file=StringIO(), color_system=None)
    study.tables(console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_subject_says_what_is_shown(full: Report) -> None:
    assert full.subject == "simulated, 2 x engine, coding, load 0.9, 3 seeds"
    assert report({}, simulated=False).subject == "live, 2 x engine, coding, load 0.9, 0 seeds"


def test_all_four_forms_tell_the_same(full: Report, tmp_path: Path) -> None:
    full.write_json(tmp_path / "report.json")
    full.write_html(tmp_path / "report.html")
    paths = full.write_figures(tmp_path / "figures")
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    ratio = f"{document['comparisons']['ref vs new']['speedup_geomean']:.2f}"
    assert f"new is {ratio} times as fast as ref" in printed(full)
    assert f"new is {ratio} times as fast as ref" in (tmp_path / "report.html").read_text("utf-8")
    compared = ["tct.png", "kv.png", "seeds.png", "load.png"]
    assert [path.name for path in paths] == [*compared, "classes.png", "shares.png", "leads.png"]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<img ") == len(paths)
    assert "By tenant class" in page and "By tenant class" in printed(full)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert document["events_per_s"] == 2 * 3 * 40 * 20 / 2.0
    assert document["seeds"] == [1, 2, 3]


@pytest.mark.parametrize(
    "runs",
    [
        {},
        {"ref": []},
        {"ref": [], "new": [run([workflow("w", 3)])]},
        {"ref": [run()], "new": [run()]},
        {"ref": [run([workflow("w", None)])]},
    ],
)
def test_hardly_any_data_is_reported_all_the_same(
    runs: dict[str, list[RunRecord]], tmp_path: Path
) -> None:
    sparse = report(runs)
    sparse.write_json(tmp_path / "report.json")
    sparse.write_html(tmp_path / "report.html")
    sparse.write_figures(tmp_path)
    assert "A study" in printed(sparse)
    assert list(json.loads((tmp_path / "report.json").read_text("utf-8"))["presets"]) == list(runs)
