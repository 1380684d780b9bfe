"""The tables of a report on a terminal; readable from 100 columns."""

from __future__ import annotations

from collections.abc import Iterable

from saga.report.content import Table
from saga.report.extras import sim_extra

with sim_extra():
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable


_MAX_NAME = 24
"""Longer names of presets are folded."""


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    """Title, cells and note of each table. Text is never read as markup."""
    for table in tables:
        console.print()
        console.print(table.title, style="bold", markup=False, highlight=False)
        console.print(rich_table(table))
        if table.note:
            console.print(table.note, style="dim", markup=False, highlight=False)


def rich_table(table: Table) -> RichTable:
    """The same cells, as rich draws them; where it is narrow, headers wrap and numbers do not."""
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for index, header in enumerate(table.header):
        widest = max((len(row[index]) for row in table.rows), default=0)
        drawn.add_column(
            escape(header),
            style="bold" if index == 0 else "",
            justify="left" if index == 0 else "right",
            overflow="fold",
            no_wrap=widest <= _MAX_NAME if index == 0 else widest >= len(header),
        )
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    return drawn
