"""What a simulation plays: workflows, when they arrive, what goes wrong, what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from saga.report.sampler import MOST_SAMPLES
from saga.traces.script import WorkflowScript

LEAST_SPACING_US = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoss:
    """An engine that dies at ``at`` and comes back empty at ``back``, or never."""

    engine: int
    at: int
    back: int | None = None

    def __post_init__(self) -> None:
        if self.engine < 0 or self.at < 0:
            raise ValueError(f"engine {self.engine} is lost at {self.at} us: neither is below 0")
        if self.back is not None and self.back <= self.at:
            raise ValueError(f"engine {self.engine}, lost at {self.at} us, is back at {self.back}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is played: the workflows, when they arrive, and what counts."""

    scripts: Sequence[WorkflowScript]
    arrivals: Sequence[int] | None = None
    """Microseconds, one per script, not decreasing. None: a closed loop."""
    agents: int | None = None
    """Closed loop: so many workflows at a time, one after another without pause."""
    stagger_us: int = 0
    """Closed loop: the first workflows start within this time."""
    alone_us: Sequence[int]
    expected_us: Sequence[int]
    share_us: Sequence[int] | None = None
    """Alone, with no more of an engine than the tenant's share (docs/metrics.md); None: not
    known."""
    warmup: float = 0.15
    """Share of the workflows, the first ones, that is not measured."""
    declared_steps: Mapping[str, float] = field(default_factory=dict)
    """Mean number of steps that clients declare, by agent type."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Tenant weights; 1 where not given."""
    deadline_factor: float | None = None
    """Deadlines that clients declare: so many times ``expected_us`` from the submission on."""
    client_timeout_us: int | None = None
    """A client gives its workflow up when one request takes longer than this."""
    losses: Sequence[EngineLoss] = ()

    def __post_init__(self) -> None:
        if (self.arrivals is None) == (self.agents is None):
            raise ValueError("a plan has either arrivals or a number of agents")
        if self.agents is not None and self.agents < 1:
            raise ValueError(f"agents={self.agents}: must be at least 1")
        if self.stagger_us < 0:
            raise ValueError(f"stagger_us={self.stagger_us}: must be at least 0")
        for what in ("arrivals", "alone_us", "expected_us", "share_us"):
            values = getattr(self, what)
            if values is not None and len(values) != len(self.scripts):
                raise ValueError(f"{len(self.scripts)} scripts, {len(values)} {what}")
        if self.arrivals is not None:
            for before, after in pairwise((0, *self.arrivals)):
                if after < before:
                    raise ValueError(f"arrival times are not monotonic: {after} after {before}")
        if len({script.id for script in self.scripts}) < len(self.scripts):
            raise ValueError("workflow ids are not unique")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup}: must be at least 0 and below 1")
        if self.client_timeout_us is not None and self.client_timeout_us < 1:
            raise ValueError(f"client_timeout_us={self.client_timeout_us}: must be at least 1")
        if self.deadline_factor is not None and not self.deadline_factor > 0:
            raise ValueError(f"deadline_factor={self.deadline_factor}: must be above 0")
        self._check_losses()

    def _check_losses(self) -> None:
        back: dict[int, float] = {}
        for loss in sorted(self.losses, key=lambda loss: loss.at):
            if loss.at <= back.get(loss.engine, -1):
                raise ValueError(f"engine {loss.engine} is lost at {loss.at} us, before it is back")
            back[loss.engine] = float("inf") if loss.back is None else loss.back


def spacing_us(plan: Plan) -> int:
    """Time between samples that uses half of them up when the last workflow arrives or, in a closed
    loop, can have ended."""
    if plan.arrivals is not None:
        span = max(plan.arrivals, default=0)
    else:
        span = sum(plan.alone_us) // (plan.agents or 1)
    return max(LEAST_SPACING_US, 2 * span // MOST_SAMPLES)
