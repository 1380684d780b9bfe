"""The paper's three workloads (arXiv 2605.00528, section 7, and the per-tool table of section 3).

The paper gives step counts, sizes per step, observations and a tool mix. Its prompts of 2 to 4
thousand tokens per step are read as first prompts, of which half the low end is a system prefix
that all workflows of an agent type share; from there the context grows by every output and
observation. Token ranges are in units of 1,024. Return time is tool time: the paper tells of no
other time at the client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga.traces import SessionScript, StepScript, WorkflowScript

K = 1024
STEPS_SHAPE = 2.0
OBSERVATION_SHAPE = 2.0

_LEVELS = (0.0, 0.5, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class ToolLatency:
    """Latency of a tool through its published quantiles, microseconds.

    The logarithm is linear in the level between them. The smallest value mirrors P95 at the median;
    beyond P99 the last piece goes on to the largest.
    """

    p50: float
    p95: float
    p99: float

    @property
    def values(self) -> tuple[float, ...]:
        """The quantile function at the levels 0, 0.5, 0.95, 0.99 and 1."""
        largest = self.p99 * (self.p99 / self.p95) ** (0.01 / 0.04)
        return (self.p50**2 / self.p95, self.p50, self.p95, self.p99, largest)

    @property
    def mean(self) -> float:
        values = np.array(self.values)
        return float(np.sum(np.diff(_LEVELS) * np.diff(values) / np.diff(np.log(values))))

    def sample(self, level: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(np.interp(level, _LEVELS, np.log(self.values)))


TOOLS: Mapping[str, ToolLatency] = {
    "code_execution": ToolLatency(180e3, 2_400e3, 28_000e3),
    "file_operation": ToolLatency(45e3, 320e3, 1_200e3),
    "web_api": ToolLatency(850e3, 4_500e3, 45_000e3),
    "database_query": ToolLatency(120e3, 890e3, 3_500e3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One row of the paper's workload table. Ranges are uniform, both ends included."""

    agent_type: str
    mean_steps: float
    max_steps: int
    first_prompt: tuple[int, int]
    output: tuple[int, int]
    mean_observation: float
    tools: Mapping[str, float]
    """Shares of ``TOOLS``."""

    @property
    def prefix_tokens(self) -> int:
        return self.first_prompt[0] // 2

    def draw(self, rng: np.random.Generator, tool_cv: float | None = None) -> WorkflowScript:
        """One workflow.

        ``tool_cv`` replaces each tool's latency by a log-normal one of the same mean and this
        coefficient of variation (the paper's table 10); nothing else changes with it.
        """
        steps = rng.gamma(STEPS_SHAPE, self.mean_steps / STEPS_SHAPE)
        num = int(np.clip(round(steps), 1, self.max_steps))
        first = int(rng.integers(*self.first_prompt, endpoint=True))
        outputs = rng.integers(*self.output, size=num, endpoint=True)
        observed = rng.gamma(OBSERVATION_SHAPE, self.mean_observation / OBSERVATION_SHAPE, num - 1)
        tools = rng.choice(list(self.tools), size=num - 1, p=list(self.tools.values()))
        tool_us = _latencies(tools, rng, tool_cv)
        new = [first - self.prefix_tokens, *np.maximum(np.rint(observed), 1).astype(int).tolist()]
        return WorkflowScript(
            id=self.agent_type,
            agent_type=self.agent_type,
            sessions=(self._session(new, outputs.tolist(), tools.tolist(), tool_us),),
        )

    def _session(
        self, new: list[int], outputs: list[int], tools: list[str], tool_us: list[int]
    ) -> SessionScript:
        steps = []
        context = self.prefix_tokens
        for index, (added, output) in enumerate(zip(new, outputs, strict=True)):
            last = index == len(tools)
            steps.append(
                StepScript(
                    kept_tokens=context,
                    new_tokens=added,
                    output_tokens=output,
                    tool=None if last else tools[index],
                    tool_us=0 if last else tool_us[index],
                    gap_us=0 if last else tool_us[index],
                )
            )
            context += added + output
        return SessionScript(
            steps=tuple(steps), prefix=self.agent_type, prefix_tokens=self.prefix_tokens
        )


def _latencies(tools: NDArray[np.str_], rng: np.random.Generator, cv: float | None) -> list[int]:
    latency = np.zeros(len(tools))
    for name, tool in TOOLS.items():
        chosen = tools == name
        if cv is None:
            latency[chosen] = tool.sample(rng.random(int(chosen.sum())))
        else:
            sigma = math.sqrt(math.log1p(cv**2))
            mu = math.log(tool.mean) - sigma**2 / 2
            latency[chosen] = rng.lognormal(mu, sigma, int(chosen.sum()))
    return [round(one) for one in latency.tolist()]


SWE_BENCH = AgentSpec(
    agent_type="swe-bench",
    mean_steps=37,
    max_steps=150,
    first_prompt=(2 * K, 4 * K),
    output=(100, 500),
    mean_observation=350,
    tools={
        "code_execution": 0.45,
        "file_operation": 0.40,
        "web_api": 0.10,
        "database_query": 0.05,
    },
)
WEBARENA = AgentSpec(
    agent_type="webarena",
    mean_steps=18,
    max_steps=80,
    first_prompt=(4 * K, 8 * K),
    output=(50, 200),
    mean_observation=800,
    tools={
        "web_api": 0.75,
        "file_operation": 0.15,
        "code_execution": 0.05,
        "database_query": 0.05,
    },
)


def _burst(
    tenant_class: str, mean_steps: float, first: tuple[int, int], output: tuple[int, int]
) -> AgentSpec:
    return AgentSpec(
        agent_type=f"burstgpt-{tenant_class}",
        mean_steps=mean_steps,
        max_steps=150,
        first_prompt=first,
        output=output,
        mean_observation=400,
        tools={"code_execution": 0.5, "web_api": 0.5},
    )


BURSTGPT = {
    "heavy": _burst("heavy", 100, (3 * K, 5 * K), (200, 600)),
    "medium": _burst("medium", 30, (2 * K, 4 * K), (100, 400)),
    "light": _burst("light", 10, (3 * K // 2, 3 * K), (50, 200)),
}
"""By tenant class."""
