"""Everything about a set of runs in one place: metrics, comparisons, and four ways to show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from saga.report import content, jsonfile
from saga.report.content import LoadPoint
from saga.report.fairness_content import fairness_tables
from saga.report.metrics import Summary, aggregate
from saga.report.records import RunRecord
from saga.report.statistics import Comparison, compare

if TYPE_CHECKING:
    from rich.console import Console

    from saga.report.drawing import Picture
    from saga.report.html import Section


@dataclass(kw_only=True)
class Report:
    """The runs of several presets, the first of which is the reference, on paired seeds.

    ``parameters`` is shown as it is; ``cluster``, ``workload`` and ``load``, where given, also
    name what the pictures show. Showing anything but JSON needs the extra ``sim``.
    """

    title: str
    parameters: Mapping[str, str]
    runs: Mapping[str, Sequence[RunRecord]]
    wall_s: float
    """Time that all runs took together, seconds."""
    load_points: Sequence[LoadPoint] | None = None
    """A sweep over load, ascending or not; the tables and the other pictures show ``runs``."""
    simulated: bool = True

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        return {name: aggregate(runs) for name, runs in self.runs.items()}

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Every preset that has runs, but the reference, compared with the reference."""
        reference, *others = self.runs or [""]
        return {
            name: compare(self.runs[reference], self.runs[name])
            for name in others
            if self.runs[reference] and self.runs[name]
        }

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for runs in self.runs.values() for run in runs})

    @property
    def headline(self) -> str:
        return content.headline(self.summaries, self.comparisons)

    @property
    def caveat(self) -> str:
        return content.caveat(self.comparisons)

    @property
    def subject(self) -> str:
        """What the pictures show, such as "simulated, 16 x Llama-3-70B TP4 A100, load 0.95"."""
        load = self.parameters.get("load")
        return ", ".join([self._setting, *([f"load {load}"] if load else []), self._num_seeds])

    @cached_property
    def pictures(self) -> list[Picture]:
        from saga.report.fairness_figures import fairness_pictures
        from saga.report.figures import pictures

        found = pictures(
            self.runs,
            self.summaries,
            self.comparisons,
            self.subject,
            self.load_points or (),
            sweep_subject=self._setting,
        )
        return found + fairness_pictures(self.runs, self.summaries, self.subject)

    def tables(self, console: Console) -> None:
        """Prints the results to a terminal."""
        from saga.report.tables import print_tables

        tables = content.result_tables(self.summaries, self.comparisons)
        tables += fairness_tables(self.summaries)
        if self.load_points:
            tables.append(content.load_table(self.load_points))
        console.print(self.title, style="bold", markup=False, highlight=False)
        console.print(self.subject, style="dim", markup=False, highlight=False)
        print_tables(console, tables)
        console.print()
        console.print(self.headline, style="bold", markup=False, highlight=False)
        if self.caveat:
            console.print(self.caveat, style="dim", markup=False, highlight=False)

    def write_json(self, path: Path) -> None:
        """Writes strict JSON; its shape is ``jsonfile.to_json``'s."""
        num_events = sum(run.num_events for runs in self.runs.values() for run in runs)
        document = jsonfile.to_json(
            summaries=self.summaries,
            comparisons=self.comparisons,
            seeds=self.seeds,
            parameters=dict(self.parameters),
            events_per_s=num_events / self.wall_s if self.wall_s > 0 else None,
            wall_s=self.wall_s,
            load_points=self.load_points or (),
        )
        jsonfile.write_json(path, document)

    def write_html(self, path: Path) -> None:
        """Writes one page with everything in it."""
        from saga.report.html import render

        page = render(
            title=self.title,
            subject=self.subject,
            headline=self.headline,
            caveat=self.caveat,
            key_figures=content.key_figures(self.summaries, self.comparisons),
            sections=self._sections(),
            parameters=self.parameters,
            simulated=self.simulated,
        )
        path.write_text(page, encoding="utf-8")

    def write_figures(self, directory: Path) -> list[Path]:
        """Writes the pictures for bright pages into the directory, which is made if need be."""
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / picture.name for picture in self.pictures]
        for path, picture in zip(paths, self.pictures, strict=True):
            path.write_bytes(picture.light)
        return paths

    def _sections(self) -> list[Section]:
        from saga.report.html import Section

        fairness = ("classes.png", "shares.png", "leads.png")
        drawn = {picture.name: [picture] for picture in self.pictures}
        reference = next(iter(self.summaries), "")
        summaries, comparisons = self.summaries, self.comparisons
        return [
            Section(
                title="Task completion time",
                pictures=drawn.get("tct.png", ()),
                tables=[
                    content.completion_table(summaries, comparisons),
                    content.outcome_table(summaries),
                ],
            ),
            Section(
                title="How sure is this",
                pictures=drawn.get("seeds.png", ()),
                tables=[content.comparison_table(reference, comparisons)] if comparisons else (),
            ),
            Section(
                title="Across loads",
                pictures=drawn.get("load.png", ()),
                tables=[content.load_table(self.load_points)] if self.load_points else (),
            ),
            Section(title="Service", tables=[content.service_table(summaries)]),
            Section(
                title="Fairness",
                pictures=[one for name in fairness for one in drawn.get(name, ())],
                tables=fairness_tables(summaries),
            ),
            Section(
                title="Memory and time",
                pictures=drawn.get("kv.png", ()),
                tables=[content.memory_table(summaries), content.split_table(summaries)],
            ),
        ]

    @property
    def _setting(self) -> str:
        named = (self.parameters.get(key) for key in ("cluster", "workload"))
        mode = "simulated" if self.simulated else "live"
        return ", ".join([mode, *(value for value in named if value)])

    @property
    def _num_seeds(self) -> str:
        return "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
