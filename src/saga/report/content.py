"""What a report says, as plain strings: terminal and HTML page only differ in how they draw it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from saga.report.metrics import PARTS, SLO_FACTOR, Summary
from saga.report.statistics import Comparison, holm

MISSING = "–"

Summaries = Mapping[str, Summary]
"""Preset to its metrics; the first preset is the reference."""
Comparisons = Mapping[str, Comparison]
"""Every preset but the reference, compared with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """One load of a sweep: for each preset the summary of each seed."""

    load: float
    summaries: Mapping[str, Sequence[Summary]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells as text; the first column names the row, the others hold numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFigure:
    """One number worth a large font; ``reference`` says whose the other is, and the number."""

    name: str
    preset: str
    value: str
    reference: str


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped: 0.042, 8.40, 31.5, 12,600."""
    if value is None:
        return MISSING
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:,.0f}"
    if magnitude >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if magnitude >= 0.1 or value == 0 else f"{value:.2g}"


def percent(fraction: float | None) -> str:
    """A fraction in percent, one digit; neither end of 0 to 100 is claimed unless it is exact."""
    if fraction is None:
        return MISSING
    if 0 < fraction < 0.0005:
        return "<0.1"
    if 0.9995 <= fraction < 1:
        return ">99.9"
    return f"{100 * fraction:.1f}"


def decimal(value: float | None, digits: int = 2) -> str:
    """With so many digits behind the point: what is compared in a column."""
    return MISSING if value is None else f"{value:.{digits}f}"


def p_value(p: float | None) -> str:
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def speedup(comparison: Comparison) -> str:
    """Such as ``1.43 [1.13, 2.12]``; without the bracket where there is no interval."""
    if comparison.ci95 is None:
        return decimal(comparison.speedup_geomean)
    low, high = comparison.ci95
    return f"{decimal(comparison.speedup_geomean)} [{decimal(low)}, {decimal(high)}]"


def summary_table(
    summaries: Summaries, *, title: str, columns: Mapping[str, Callable[[Summary], str]], note: str
) -> Table:
    """One row for each preset."""
    return Table(
        title=title,
        header=("preset", *columns),
        rows=tuple(
            (name, *(cell(summary) for cell in columns.values()))
            for name, summary in summaries.items()
        ),
        note=note,
    )


def completion_table(summaries: Summaries, comparisons: Comparisons) -> Table:
    adjusted = holm({name: comparison.wilcoxon_p for name, comparison in comparisons.items()})
    rows = [
        (
            name,
            number(s.tct_geomean_s),
            number(s.tct_mean_s),
            number(s.tct_p50_s),
            number(s.tct_p99_s),
            number(s.slowdown_mean),
            speedup(comparisons[name]) if name in comparisons else "reference",
            p_value(adjusted[name]) if name in comparisons else "",
        )
        for name, s in summaries.items()
    ]
    return Table(
        title="Task completion time (TCT, s)",
        header=("preset", "geomean", "mean", "p50", "p99", "slow-down", "speed-up [95 % CI]", "p"),
        rows=tuple(rows),
        note="Over finished workflows. Slow-down: mean TCT / TCT alone. Speed-up: TCT of the "
        "reference / TCT, paired by workflow. p: Wilcoxon over seeds, Holm-adjusted.",
    )


def outcome_table(summaries: Summaries) -> Table:
    return summary_table(
        summaries,
        title="How workflows ended, and what the scheduler did",
        columns={
            "measured": lambda s: f"{s.num_workflows:,}",
            "finished": lambda s: f"{s.num_finished:,}",
            "rejected": lambda s: f"{s.num_rejected:,}",
            "timed out": lambda s: f"{s.num_timed_out:,}",
            "unfinished": lambda s: f"{s.num_unfinished:,}",
            "moved": lambda s: f"{s.num_moves:,}",
            "stolen": lambda s: f"{s.num_steals:,}",
            "paused": lambda s: f"{s.num_pauses:,}",
            "preempted": lambda s: f"{s.num_preemptions:,}",
        },
        note="Summed over seeds. What did not finish has no TCT: read times beside this table.",
    )


def service_table(summaries: Summaries) -> Table:
    return summary_table(
        summaries,
        title="Service",
        columns={
            "tasks/min": lambda s: number(s.throughput_tasks_per_min),
            "TTFT p50 s": lambda s: number(s.ttft_p50_s),
            "TTFT p99 s": lambda s: number(s.ttft_p99_s),
            "SLO %": lambda s: percent(s.slo_attainment),
            "≤2x alone %": lambda s: percent(s.slo_alone_2),
            "longest wait s": lambda s: number(s.longest_wait_s),
        },
        note=f"SLO: finished with TCT ≤ {SLO_FACTOR} x expected; everything else is a miss.",
    )


def memory_table(summaries: Summaries) -> Table:
    return summary_table(
        summaries,
        title="KV memory (% of capacity x time) and prompt tokens (%)",
        columns={
            "active": lambda s: percent(s.kv_active),
            "waiting": lambda s: percent(s.kv_waiting),
            "dead": lambda s: percent(s.kv_dead),
            "used": lambda s: percent(s.kv_used),
            "useful": lambda s: percent(s.kv_useful),
            "hit rate": lambda s: percent(s.hit_rate),
            "regen.": lambda s: percent(s.regenerated_fraction),
            "regen. time s": lambda s: number(s.regenerated_gpu_s),
            "evicted Mtok": lambda s: number(s.evicted_tokens / 1e6),
        },
        note="Used = active + waiting + dead. Useful: active, or idle and later hit. Regen.: "
        "prompt tokens prefilled again although the session had computed them before, and the "
        "engine time for it, summed over engines and seeds.",
    )


def split_table(summaries: Summaries) -> Table:
    def part(name: str) -> Callable[[Summary], str]:
        return lambda s: number(s.split_s[name] if s.split_s else None)

    columns = {name: part(name) for name in PARTS}
    columns["TCT"] = lambda s: number(s.tct_mean_s)
    return summary_table(
        summaries,
        title="Where the time goes (mean s per finished workflow)",
        columns=columns,
        note="Parts of the root session's TCT. Regenerated: prefilling again.",
    )


def comparison_table(reference: str, comparisons: Comparisons) -> Table:
    adjusted = holm({name: comparison.wilcoxon_p for name, comparison in comparisons.items()})
    rows = [
        (
            name,
            speedup(comparison),
            p_value(comparison.wilcoxon_p),
            p_value(adjusted[name]),
            f"{comparison.n_seeds}",
            f"{comparison.num_pairs:,}",
            f"{comparison.num_left_out:,}",
            f"{comparison.num_finished_only_reference:,}",
            f"{comparison.num_finished_only_other:,}",
        )
        for name, comparison in comparisons.items()
    ]
    return Table(
        title=f"Speed-up over {reference}",
        header=(
            *("preset", "speed-up [95 % CI]", "p", "p (Holm)", "seeds", "pairs", "left out"),
            *("only the reference finished", "only this preset finished"),
        ),
        rows=tuple(rows),
        note=" ".join(
            ["A pair is one workflow that finished under both presets.", *_notes(comparisons)]
        ),
    )


def load_table(points: Sequence[LoadPoint]) -> Table:
    presets = list(dict.fromkeys(name for point in points for name in point.summaries))
    rows = [
        (
            f"{point.load:g}",
            *(number(load_tct(point.summaries.get(name, ()))) for name in presets),
        )
        for point in sorted(points, key=lambda point: point.load)
    ]
    return Table(
        title="TCT at each load (geometric mean over seeds, s)",
        header=("load", *presets),
        rows=tuple(rows),
        note="Over finished workflows.",
    )


def load_tct(summaries: Sequence[Summary]) -> float | None:
    """Geometric mean over seeds of the geometric mean TCT, seconds; seeds without one left out."""
    known = [s.tct_geomean_s for s in summaries if s.tct_geomean_s is not None]
    product = 1.0
    for value in known:
        product *= value ** (1 / len(known))
    return product if known else None


def result_tables(summaries: Summaries, comparisons: Comparisons) -> list[Table]:
    """The tables of one load, most asked for first."""
    return [
        completion_table(summaries, comparisons),
        outcome_table(summaries),
        service_table(summaries),
        memory_table(summaries),
        split_table(summaries),
    ]


def headline(summaries: Summaries, comparisons: Comparisons) -> str:
    """The result in one sentence, with its uncertainty; claims nothing the interval does not."""
    reference = next(iter(summaries), None)
    if reference is None or not any(s.num_finished for s in summaries.values()):
        return "No measured workflow finished."
    best = _best(comparisons)
    if best is None:
        s = summaries[reference]
        return (
            f"{reference} finished {s.num_finished:,} of {s.num_workflows:,} workflows, "
            f"in {number(s.tct_mean_s)} s on average."
        )
    return _claim(reference, best, comparisons[best])


def caveat(comparisons: Comparisons) -> str:
    """What the headline leaves out: the workflows that it does not compare; empty if none."""
    best = _best(comparisons)
    if best is None or not comparisons[best].num_left_out:
        return ""
    comparison = comparisons[best]
    total = comparison.num_pairs + comparison.num_left_out
    return (
        f"{comparison.num_left_out:,} of {total:,} workflows are not in this comparison, "
        "since at least one of the two presets did not finish them."
    )


def key_figures(summaries: Summaries, comparisons: Comparisons) -> list[KeyFigure]:
    """The headline's preset beside the reference; empty where nothing can be compared."""
    best = _best(comparisons)
    if best is None:
        return []
    reference = next(iter(summaries))
    ours, theirs = summaries[best], summaries[reference]
    shown = (
        ("TCT, geometric mean", number, "s", ours.tct_geomean_s, theirs.tct_geomean_s),
        ("TCT p99", number, "s", ours.tct_p99_s, theirs.tct_p99_s),
        ("SLO attained", percent, "%", ours.slo_attainment, theirs.slo_attainment),
        (
            "Prompt regenerated",
            percent,
            "%",
            ours.regenerated_fraction,
            theirs.regenerated_fraction,
        ),
    )
    return [
        KeyFigure(
            name=name,
            preset=best,
            value=f"{text(value)} {unit}",
            reference=f"{reference}: {text(other)} {unit}",
        )
        for name, text, unit, value, other in shown
        if value is not None
    ]


def _best(comparisons: Comparisons) -> str | None:
    ranked = {n: c.speedup_geomean for n, c in comparisons.items() if c.speedup_geomean is not None}
    return max(ranked, key=ranked.__getitem__, default=None)


def _claim(reference: str, best: str, comparison: Comparison) -> str:
    ratio = decimal(comparison.speedup_geomean)
    if comparison.ci95 is None:
        return f"{best} is {ratio} times as fast as {reference} (one seed: no confidence interval)."
    low, high = comparison.ci95
    evidence = f"95 % CI {decimal(low)} to {decimal(high)} over {comparison.n_seeds} seeds"
    if low > 1:
        return f"{best} is {ratio} times as fast as {reference} ({evidence})."
    if high < 1:
        return f"{reference} is fastest; next, {best} is {ratio} times as fast ({evidence})."
    return f"{best} is not clearly apart from {reference}: {ratio} times as fast ({evidence})."


def _notes(comparisons: Comparisons) -> list[str]:
    """Each remark once, with the presets it holds for unless it holds for all."""
    presets: dict[str, list[str]] = {}
    for name, comparison in comparisons.items():
        for note in comparison.notes:
            presets.setdefault(note, []).append(name)
    return [
        f"{note}." if len(names) == len(comparisons) else f"{', '.join(names)}: {note}."
        for note, names in presets.items()
    ]
