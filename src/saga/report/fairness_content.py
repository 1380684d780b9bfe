"""What a report says of tenants and their classes, as plain strings."""

from __future__ import annotations

from collections.abc import Callable

from saga.report.content import Summaries, Table, decimal, number, percent, summary_table
from saga.report.metrics import SLO_FACTOR, Summary

MOST_TENANTS = 12
"""With more, the table of tenants is left out: the JSON file has them all."""


def fairness_tables(summaries: Summaries) -> list[Table]:
    """Those that there is something to tell apart for."""
    tables = [fairness_table(summaries)]
    if len(_names(summaries, lambda s: s.longest_wait_s_by_class)) > 1:
        tables.append(class_table(summaries))
    if 1 < len(_names(summaries, _rho_p99)) <= MOST_TENANTS:
        tables.append(tenant_table(summaries))
    return tables


def fairness_table(summaries: Summaries) -> Table:
    return summary_table(
        summaries,
        title="Fairness",
        columns={
            "Jain": lambda s: decimal(s.fairness_jain, digits=3),
            "max/min": lambda s: decimal(s.fairness_max_min),
            "rho p99": lambda s: decimal(s.finish_time_fairness_p99),
            "rho max": lambda s: decimal(s.finish_time_fairness_max),
            "deviation": lambda s: decimal(s.afs_deviation_ratio),
            "starved": lambda s: f"{s.num_starved_tenants:,}",
        },
        note="Jain and max/min: slow-down across tenants (of one tenant: across its workflows). "
        "Rho: TCT / TCT alone with the tenant's share of an engine. Deviation: of service from "
        "the share, over its bound. Starved: tenants of which nothing finished.",
    )


def class_table(summaries: Summaries) -> Table:
    classes = _names(summaries, lambda s: s.longest_wait_s_by_class)
    rows = [
        (
            name,
            of,
            decimal(s.slowdown_mean_by_class.get(of)),
            decimal(s.slowdown_p99_by_class.get(of)),
            number(s.ttft_p99_s_by_class.get(of)),
            number(s.longest_wait_s_by_class.get(of)),
            percent(s.slo_by_class.get(of)),
        )
        for name, s in summaries.items()
        for of in classes
    ]
    return Table(
        title="By tenant class",
        header=(
            *("preset", "class", "slow-down mean", "p99"),
            *("TTFT p99 s", "longest wait s", "SLO %"),
        ),
        rows=tuple(rows),
        note=f"SLO: finished with TCT ≤ {SLO_FACTOR} x expected; slow-down: of what finished.",
    )


def tenant_table(summaries: Summaries) -> Table:
    rows = [
        (tenant, *(decimal(_rho_p99(s).get(tenant)) for s in summaries.values()))
        for tenant in _names(summaries, _rho_p99)
    ]
    return Table(
        title="Rho p99 by tenant",
        header=("tenant", *summaries),
        rows=tuple(rows),
        note="TCT / TCT alone with the tenant's share of an engine; 1 or less: sharing cost it "
        "nothing.",
    )


def _rho_p99(summary: Summary) -> dict[str, float]:
    return summary.finish_time_fairness_p99_by_tenant


def _names(summaries: Summaries, groups: Callable[[Summary], dict[str, float]]) -> list[str]:
    return sorted({name for summary in summaries.values() for name in groups(summary)})
