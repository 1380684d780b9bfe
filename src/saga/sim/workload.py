"""What the workflows of a run are: the paper's generators, profiles of traces, and trace files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from saga.sim.chance import Stream, generator
from saga.sim.paper import BURSTGPT, SWE_BENCH, WEBARENA, AgentSpec
from saga.sim.profiles import Population, load_profiles
from saga.traces import Problem, SessionScript, StepScript, WorkflowScript, read_scripts

MAX_TOOL_CV = 100.0


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """A tenant of a workload."""

    name: str
    weight: float = 1.0
    """In fair sharing."""
    tenant_class: str = "default"
    share: float = 1.0
    """Its arrival rate in proportion to the other tenants'."""


@dataclass(frozen=True, kw_only=True)
class Workload(ABC):
    """A population of workflows.

    The workflow with an index depends on the seed and the index alone, so that a longer run begins
    with a shorter one and bodies combine freely with arrivals.
    """

    name: str
    description: str
    tenants: tuple[TenantSpec, ...] = (TenantSpec("default"),)
    tool_scale: float = 1.0
    """Multiplies every gap and the time in the tool."""
    problems: tuple[Problem, ...] = ()
    """What its file has that could not be read."""

    def __post_init__(self) -> None:
        if not 0 <= self.tool_scale <= 1e6:
            raise ValueError(f"tool_scale is {self.tool_scale}, allowed is 0 to 1e6")
        if not self.tenants:
            raise ValueError(f"workload {self.name!r} has no tenant")
        for tenant in self.tenants:
            for what, value in (("share", tenant.share), ("weight", tenant.weight)):
                if not 0 < value < math.inf:
                    raise ValueError(
                        f"{what} of tenant {tenant.name!r} is {value}, allowed is above 0"
                    )

    @property
    def declared_mean_steps(self) -> Mapping[str, float] | None:
        """Steps per workflow by agent type, as an operator would declare them; None: not known."""
        return None

    @property
    def source_us(self) -> tuple[int, ...] | None:
        """Arrival times in the source, in the order of the workflows, microseconds from its start.

        None if it has none.
        """
        return None

    def scripts(self, num: int, seed: int) -> list[WorkflowScript]:
        """The first ``num`` workflows of a seed, with ids ``w000000``, ``w000001``, ..."""
        return [self._script(index, seed) for index in range(num)]

    def _script(self, index: int, seed: int) -> WorkflowScript:
        body = self._body(index, seed)
        sessions = tuple(_scaled(session, self.tool_scale) for session in body.sessions)
        return replace(body, id=f"w{index:06d}", sessions=sessions)

    @abstractmethod
    def _body(self, index: int, seed: int) -> WorkflowScript:
        """One workflow with its tenant, before it gets its id."""

    def _tenant(self, index: int, seed: int) -> TenantSpec:
        """Drawn by arrival shares."""
        bounds = list(accumulate(tenant.share for tenant in self.tenants))
        level = generator(seed, Stream.TENANTS, index).random() * bounds[-1]
        return self.tenants[bisect_right(bounds, level, hi=len(bounds) - 1)]


@dataclass(frozen=True, kw_only=True)
class PaperWorkload(Workload):
    """One of the paper's workloads."""

    agents: Mapping[str, AgentSpec]
    """By tenant class. One alone serves tenants of every class."""
    tool_cv: float | None = None
    """Instead of the published tool latencies, log-normal ones with the same means."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tool_cv is not None and not 0 < self.tool_cv <= MAX_TOOL_CV:
            raise ValueError(f"tool_cv is {self.tool_cv}, allowed is above 0, to {MAX_TOOL_CV:g}")
        for tenant in self.tenants:
            if len(self.agents) > 1 and tenant.tenant_class not in self.agents:
                raise ValueError(
                    f"class of tenant {tenant.name!r} is {tenant.tenant_class!r}, "
                    f"allowed are {', '.join(self.agents)}"
                )

    @property
    def declared_mean_steps(self) -> Mapping[str, float]:
        return {agent.agent_type: agent.mean_steps for agent in self.agents.values()}

    def _body(self, index: int, seed: int) -> WorkflowScript:
        tenant = self._tenant(index, seed)
        one, *others = self.agents.values()
        agent = self.agents[tenant.tenant_class] if others else one
        return _of_tenant(agent.draw(generator(seed, Stream.BODIES, index), self.tool_cv), tenant)


@dataclass(frozen=True, kw_only=True)
class ProfileWorkload(Workload):
    """Workflows like those of a real trace."""

    population: Population

    @property
    def declared_mean_steps(self) -> Mapping[str, float]:
        return {agent.agent_type: agent.mean_steps for agent in self.population.agents}

    def _body(self, index: int, seed: int) -> WorkflowScript:
        body = self.population.draw(generator(seed, Stream.BODIES, index))
        return _of_tenant(body, self._tenant(index, seed))


@dataclass(frozen=True, kw_only=True)
class FileWorkload(Workload):
    """The workflows of a trace file in the order of their arrival, then copies of any of them.

    A copy has sessions of its own: it shares a declared system prefix with the original, nothing
    else.
    """

    bodies: tuple[WorkflowScript, ...]
    own_tenants: bool = True
    """Workflows keep the tenants that the file gives them."""

    @property
    def source_us(self) -> tuple[int, ...] | None:
        times = tuple(body.submitted_us for body in self.bodies if body.submitted_us is not None)
        return times if len(times) == len(self.bodies) else None

    def _body(self, index: int, seed: int) -> WorkflowScript:
        if index < len(self.bodies):
            body = self.bodies[index]
        else:
            drawn = int(generator(seed, Stream.BODIES, index).integers(len(self.bodies)))
            body = replace(self.bodies[drawn], submitted_us=None)
        return body if self.own_tenants else _of_tenant(body, self._tenant(index, seed))


def _of_tenant(body: WorkflowScript, tenant: TenantSpec) -> WorkflowScript:
    return replace(body, tenant=tenant.name, tenant_class=tenant.tenant_class)


def _scaled(session: SessionScript, factor: float) -> SessionScript:
    if factor == 1:
        return session
    return replace(session, steps=tuple(_scaled_step(step, factor) for step in session.steps))


def _scaled_step(step: StepScript, factor: float) -> StepScript:
    return replace(step, tool_us=round(step.tool_us * factor), gap_us=round(step.gap_us * factor))


_BURSTGPT_TENANTS = (
    *(TenantSpec(f"heavy-{i}", 3.0, "heavy", 16.0) for i in range(3)),
    *(TenantSpec(f"medium-{i}", 2.0, "medium", 8.0) for i in range(4)),
    *(TenantSpec(f"light-{i}", 1.0, "light", 4.0) for i in range(3)),
)
"""Their shares are the tasks per minute of each."""

_PAPER = {
    workload.name: workload
    for workload in (
        PaperWorkload(
            name="swe-bench",
            description="the paper's coding agent: 37 steps of code and files",
            agents={"default": SWE_BENCH},
        ),
        PaperWorkload(
            name="webarena",
            description="the paper's browser agent: 18 steps of web APIs",
            agents={"default": WEBARENA},
        ),
        PaperWorkload(
            name="burstgpt-mix",
            description="the paper's ten tenants: heavy, medium and light agents",
            tenants=_BURSTGPT_TENANTS,
            agents=BURSTGPT,
        ),
    )
}


def list_workloads() -> dict[str, str]:
    """Descriptions of the built-in workloads by name."""
    paper = {name: workload.description for name, workload in _PAPER.items()}
    return paper | {name: one.description for name, one in load_profiles().items()}


def get_workload(
    spec: str,
    *,
    tool_scale: float = 1.0,
    tool_cv: float | None = None,
    tenants: Sequence[TenantSpec] | None = None,
    strict: bool = False,
) -> Workload:
    """The workload with a built-in name, or ``file:PATH``, the workflows of a trace file.

    ``tool_cv`` replaces the tool latencies of one of the paper's workloads by log-normal ones of
    the same means and this coefficient of variation. ``tenants`` get the workflows instead of the
    workload's own. ``strict`` refuses a file with any problem. Raises ValueError for an unknown
    name or value, and TraceError for a file that cannot be read.
    """
    if spec in _PAPER:
        workload: Workload = replace(_PAPER[spec], tool_cv=tool_cv)
    elif tool_cv is not None:
        raise ValueError(f"tool_cv applies to {', '.join(_PAPER)}, not to {spec!r}")
    elif spec in load_profiles():
        population = load_profiles()[spec]
        workload = ProfileWorkload(
            name=spec, description=population.description, population=population
        )
    elif spec.startswith("file:"):
        workload = _file_workload(spec, strict, own_tenants=tenants is None)
    else:
        allowed = ", ".join((*list_workloads(), "file:PATH"))
        raise ValueError(f"workload is {spec!r}, allowed are {allowed}")
    if tenants is not None:
        workload = replace(workload, tenants=tuple(tenants))
    return replace(workload, tool_scale=tool_scale)


def _file_workload(spec: str, strict: bool, own_tenants: bool) -> FileWorkload:
    trace = read_scripts(spec.removeprefix("file:"), strict=strict)
    bodies = trace.scripts
    if all(body.submitted_us is not None for body in bodies):
        bodies = sorted(bodies, key=lambda body: body.submitted_us or 0)
    classes = {body.tenant: body.tenant_class for body in bodies}
    counts = Counter(body.tenant for body in bodies)
    return FileWorkload(
        name=spec,
        description=f"{len(bodies)} workflows of {trace.path.name} ({trace.kind})",
        tenants=tuple(
            TenantSpec(name, 1.0, classes[name], count) for name, count in counts.items()
        ),
        bodies=tuple(bodies),
        own_tenants=own_tenants,
        problems=tuple(trace.problems),
    )
