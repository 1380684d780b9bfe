from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from tests.report.factory import study

from saga.report.content import Table, result_tables
from saga.report.metrics import aggregate
from saga.report.statistics import compare
from saga.report.tables import print_tables


def printed(tables: list[Table], width: int) -> str:
    console = Console(width=width, file=StringIO(), color_system=None)
    print_tables(console, tables)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def tables() -> list[Table]:
    runs = study(
        {"vllm-apc-affinity-offload": 0.8, "round-robin": 30, "saga": 0.2}, seeds=3, tasks=20
    )
    reference, *others = runs
    return result_tables(
        {name: aggregate(runs[name]) for name in runs},
        {name: compare(runs[reference], runs[name]) for name in others},
    )


def test_every_cell_is_whole_at_100_columns(tables: list[Table]) -> None:
    text = printed(tables, width=100)
    assert max(len(line) for line in text.splitlines()) <= 100
    cells = [cell for table in tables for row in table.rows[1:] for cell in row]
    assert [cell for cell in cells if cell not in text] == []


def test_a_long_name_is_folded_and_its_numbers_stay_whole(tables: list[Table]) -> None:
    text = printed(tables[:1], width=100)
    name, geomean, *_ = tables[0].rows[0]
    assert len(name) > 24
    assert max(len(line) for line in text.splitlines()) <= 100
    assert geomean in text


def test_text_is_not_markup() -> None:
    table = Table(
        title="[red]t", header=("preset", "[bold]x"), rows=(("[blue]p", "1"),), note="[i]"
    )
    text = printed([table], width=80)
    for literal in ("[red]t", "[bold]x", "[blue]p", "[i]"):
        assert literal in text
