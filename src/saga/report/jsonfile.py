"""A report as strict JSON: what scripts and benchmarks read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import saga
from saga.report.content import Comparisons, LoadPoint, Summaries, load_tct
from saga.report.statistics import holm


def to_json(
    *,
    summaries: Summaries,
    comparisons: Comparisons,
    seeds: Sequence[int],
    parameters: dict[str, str],
    events_per_s: float | None = None,
    wall_s: float | None = None,
    load_points: Sequence[LoadPoint] = (),
) -> dict[str, Any]:
    """Plain data; None where a metric is undefined. The first preset is the reference.

    ``presets`` holds every field of ``Summary``; ``comparisons`` is keyed "REFERENCE vs OTHER".
    """
    reference = next(iter(summaries), None)
    adjusted = holm({name: comparison.wilcoxon_p for name, comparison in comparisons.items()})
    return {
        "presets": {name: asdict(summary) for name, summary in summaries.items()},
        "comparisons": {
            f"{reference} vs {name}": asdict(comparison) | {"wilcoxon_p_holm": adjusted[name]}
            for name, comparison in comparisons.items()
        },
        "load_points": [_load_point(point) for point in load_points],
        "seeds": list(seeds),
        "events_per_s": events_per_s,
        "wall_s": wall_s,
        "version": saga.__version__,
        "parameters": dict(parameters),
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes strict JSON, UTF-8. Raises ValueError on a NaN or an infinity."""
    text = json.dumps(document, allow_nan=False, ensure_ascii=False, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def _load_point(point: LoadPoint) -> dict[str, Any]:
    return {
        "load": point.load,
        "presets": {
            name: {
                "tct_geomean_s": load_tct(summaries),
                "per_seed": [asdict(summary) for summary in summaries],
            }
            for name, summaries in point.summaries.items()
        },
    }
