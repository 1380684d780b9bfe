"""How tenants, and classes of tenants, fare beside each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from saga.report.averages import Floats, ratio
from saga.report.records import Outcome, RunRecord, WorkflowRecord


def slowdown(workflow: WorkflowRecord) -> float | None:
    """TCT over TCT alone; None unless it finished and the time alone is known."""
    return _over(workflow, workflow.alone_us)


def finish_time_fairness(workflow: WorkflowRecord) -> float | None:
    """TCT over TCT alone with no more of an engine than the tenant's share; None as above.

    1 or less: the workflow lost nothing by sharing. Mahajan et al., Themis, NSDI 2020.
    """
    return _over(workflow, workflow.share_us)


def by_class(
    workflows: Iterable[WorkflowRecord], of: Callable[[WorkflowRecord], float | None]
) -> dict[str, Floats]:
    """Values of each tenant class, in the order of their names; classes without any left out."""
    return _grouped((workflow.tenant_class, of(workflow)) for workflow in workflows)


def by_tenant(
    workflows: Iterable[WorkflowRecord], of: Callable[[WorkflowRecord], float | None]
) -> dict[str, Floats]:
    """The same of each tenant."""
    return _grouped((workflow.tenant, of(workflow)) for workflow in workflows)


def each(groups: dict[str, Floats], of: Callable[[Floats], float | None]) -> dict[str, float]:
    """One number for each group that has one."""
    numbers = {name: of(values) for name, values in groups.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def jain_index(values: Sequence[float]) -> float | None:
    """Jain's fairness index, 1/n (one gets everything) to 1 (all equal): (sum x)^2 / (n sum x^2).

    Jain, Chiu, Hawe: A Quantitative Measure of Fairness, DEC-TR-301, 1984.
    """
    return ratio(sum(values) ** 2, len(values) * sum(value * value for value in values))


def max_min_ratio(values: Sequence[float]) -> float | None:
    """The largest over the smallest value; 1 when all are equal."""
    return ratio(max(values), min(values)) if values else None


def tenant_slowdowns(run: RunRecord) -> dict[str, list[float]]:
    """Slowdowns of each tenant's finished workflows; empty if none finished.

    Workflows whose time alone is not known (0) are left out.
    """
    slowdowns: dict[str, list[float]] = defaultdict(list)
    for workflow in run.workflows:
        if workflow.measured and workflow.alone_us > 0:
            values = slowdowns[workflow.tenant]
            if (value := slowdown(workflow)) is not None:
                values.append(value)
    return dict(slowdowns)


def compared(slowdowns: dict[str, list[float]]) -> list[float]:
    """What fairness compares: tenants' mean slowdowns, or the workflows of a tenant on its own.

    Empty, hence undefined, when a tenant finished nothing: its slowdown has no upper limit.
    """
    if len(slowdowns) == 1:
        return next(iter(slowdowns.values()))
    if not all(slowdowns.values()):
        return []
    return [sum(values) / len(values) for values in slowdowns.values()]


def _over(workflow: WorkflowRecord, reference_us: int) -> float | None:
    if workflow.outcome is not Outcome.FINISHED or reference_us <= 0:
        return None
    return workflow.finished_tct_us / reference_us


def _grouped(values: Iterable[tuple[str, float | None]]) -> dict[str, Floats]:
    groups: dict[str, list[float]] = defaultdict(list)
    for name, value in values:
        if value is not None:
            groups[name].append(value)
    return {name: np.array(groups[name], dtype=np.float64) for name in sorted(groups)}
