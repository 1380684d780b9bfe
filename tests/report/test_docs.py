from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from saga.report.metrics import Summary
from saga.report.statistics import Comparison

TABLE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [Summary, Comparison])
def test_every_metric_is_in_the_table(kind: type[Summary] | type[Comparison]) -> None:
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", TABLE, flags=re.MULTILINE))
    defined = set(re.findall(r"`(\w+)`", first_cells))
    assert {field.name for field in fields(kind)} - defined == set()
