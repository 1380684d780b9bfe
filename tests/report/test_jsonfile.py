from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.factory import run, runs_with_tct

import saga
from saga.report.content import LoadPoint
from saga.report.jsonfile import to_json, write_json
from saga.report.metrics import aggregate, summarise
from saga.report.statistics import compare

# fmt: off
REQUIRED = {
    "tct_mean_s", "tct_geomean_s", "tct_p50_s", "tct_p99_s", "ttft_p99_s", "regenerated_fraction",
    "hit_rate", "kv_useful", "kv_used", "throughput_tasks_per_min", "slo_attainment",
    "slo_by_class", "fairness_jain", "longest_wait_s", "num_finished", "num_rejected",
    "num_timed_out",
}
# fmt: on


def test_shape_is_the_one_that_scripts_rely_on(tmp_path: Path) -> None:
    reference, other = runs_with_tct({1: [20], 2: [20]}), runs_with_tct({1: [10], 2: [10]})
    write_json(
        tmp_path / "report.json",
        to_json(
            summaries={"ref": aggregate(reference), "new": aggregate(other)},
            comparisons={"new": compare(reference, other)},
            seeds=[1, 2],
            parameters={"load": "0.95"},
            events_per_s=4.5,
            load_points=[LoadPoint(load=0.5, summaries={"ref": [summarise(reference[0])]})],
        ),
    )
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(document["presets"]) == ["ref", "new"]
    assert document["presets"]["ref"].keys() >= REQUIRED
    comparison = document["comparisons"]["ref vs new"]
    assert comparison["speedup_geomean"] == pytest.approx(2)
    assert comparison["ci95"] == pytest.approx([2, 2])
    assert comparison["wilcoxon_p"] == comparison["wilcoxon_p_holm"] == 0.5
    assert document["seeds"] == [1, 2]
    assert document["events_per_s"] == 4.5
    assert document["version"] == saga.__version__
    assert document["parameters"] == {"load": "0.95"}
    assert document["load_points"][0]["presets"]["ref"]["tct_geomean_s"] == pytest.approx(20)


def test_nothing_measured_is_null_not_nan(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    document = to_json(
        summaries={"p": aggregate([run()])}, comparisons={}, seeds=[1], parameters={}
    )
    write_json(path, document)
    assert json.loads(path.read_text(encoding="utf-8"))["presets"]["p"]["tct_mean_s"] is None


def test_nan_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "bad.json", {"x": float("nan")})
    assert not (tmp_path / "bad.json").exists()
