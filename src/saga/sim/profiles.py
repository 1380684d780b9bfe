"""Workloads fitted to real traces: quantile tables, correlations and tool chains, no records.

A profile draws four numbers per session (steps, first prompt, mean observation, mean output),
correlated as in the trace; then its tools, by a first-order chain; then every step's sizes and gap,
by tool. ``profiles.json`` holds the tables and docs/workloads.md tells what they were fitted to;
``benchmarks/fit_profiles.py`` makes it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import accumulate
from statistics import NormalDist

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from saga.traces import SessionScript, StepScript, WorkflowScript

LEVELS = (
    0.0,
    0.01,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.98,
    0.99,
    0.999,
    1.0,
)
"""Levels at which every table gives a quantile."""

_LEVELS = np.array(LEVELS)
_NORMAL = NormalDist()

Table = tuple[float, ...]
"""Quantiles at LEVELS. In between, log(1 + value) is linear in the level."""


class Tool(Struct):
    """What a step calls and what that means for it, for its gap, and for the step after."""

    name: str | None
    """None: no tool, or one that the trace does not name."""
    first: float
    """Probability that a session's first step calls it."""
    last: float
    """Probability that a session's last step calls it."""
    next: list[float]
    """Probability of each tool for the step after."""
    output: Table
    """Output tokens of the step that calls it, in units of the session's mean."""
    observation: Table
    """New tokens of the step after, in units of the session's mean."""
    gap_s: Table
    in_tool: float
    """Share of the gap that is spent in the tool."""


class Cut(Struct):
    """Steps whose prompt goes back behind the end of the previous one."""

    probability: float
    kept: Table
    """Share of the context that is kept."""
    new: Table
    """New tokens, in units of the tokens that were dropped."""


class Compaction(Struct):
    """Prompts that would outgrow the context window begin anew with a summary."""

    share: float
    """Share of the sessions, among those that begin within their limit, that have one."""
    limit: Table
    """Tokens that a session's context may reach."""
    summary: Table
    """Tokens of the prompt after it was reached; no more than the shared prefix is kept."""


class Prefix(Struct):
    name: str
    tokens: int
    share: float
    """Share of the sessions that begin with it; the others begin with something of their own."""


class Profile(Struct):
    """Sessions of one kind."""

    steps: Table
    first_prompt: Table
    observation: Table
    """Mean new tokens of a session's steps after the first."""
    output: Table
    """Mean output tokens of a session's steps."""
    correlation: list[list[float]]
    """Between these four, as normal scores."""
    tools: list[Tool]
    prefixes: list[Prefix] = []
    trim: float = 0.0
    """Probability that a prompt does not repeat the previous output."""
    cut: Cut | None = None
    compaction: Compaction | None = None
    replaces_observation: bool = False
    """Every prompt drops the previous observation (a page, say) and repeats the outputs only."""


class Subagents(Struct):
    """Sub-agents that a session's steps call and wait for."""

    probability: float
    """Share of the sessions that call any."""
    calling_steps: Table
    """Steps that call some, in such a session."""
    together: list[float]
    """Probability that such a step calls 1, 2, ..."""
    delay_s: float
    profile: Profile


class Agent(Struct):
    """Workflows of one agent type."""

    agent_type: str
    share: float
    """Share of the workload's workflows."""
    mean_steps: float
    profile: Profile
    subagents: Subagents | None = None


class Population(Struct):
    description: str
    agents: list[Agent]

    def draw(self, rng: np.random.Generator) -> WorkflowScript:
        """One workflow."""
        agent = self.agents[_pick([one.share for one in self.agents], rng)]
        root = draw_session(agent.profile, rng)
        children = draw_subagents(agent.subagents, root, rng) if agent.subagents else []
        return WorkflowScript(
            id=agent.agent_type, agent_type=agent.agent_type, sessions=(root, *children)
        )


@cache
def load_profiles() -> dict[str, Population]:
    """The built-in profile workloads by name."""
    text = files("saga.sim").joinpath("profiles.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, Population])


def draw_session(profile: Profile, rng: np.random.Generator) -> SessionScript:
    """One session, alone."""
    num, first, mean_observation, mean_output = _scales(profile, rng)
    tools = _tool_chain(profile.tools, num, rng)
    outputs = _whole(mean_output * _by_tool([t.output for t in profile.tools], tools, rng))
    observed = _whole(
        mean_observation * _by_tool([t.observation for t in profile.tools], tools, rng)
    )
    gaps_us = np.rint(1e6 * _by_tool([t.gap_s for t in profile.tools], tools, rng))
    gaps_us[-1] = 0
    prefix = _draw_prefix(profile, first, rng)
    prompts = _prompts(profile, prefix.tokens, first, observed, outputs, rng)
    called = [profile.tools[tool] for tool in tools]
    return SessionScript(
        steps=tuple(map(_step, prompts, outputs, called, gaps_us.astype(int).tolist())),
        prefix=prefix.name or None,
        prefix_tokens=prefix.tokens,
    )


def draw_subagents(
    subagents: Subagents, root: SessionScript, rng: np.random.Generator
) -> list[SessionScript]:
    """The sub-agents of a root session: any of its steps but the last may call some."""
    if len(root.steps) < 2 or rng.random() >= subagents.probability:
        return []
    calls = max(round(_value(subagents.calling_steps, rng.random())), 1)
    callers = np.sort(rng.integers(len(root.steps) - 1, size=calls)).tolist()
    return [
        replace(
            draw_session(subagents.profile, rng),
            parent=0,
            spawn_step=caller,
            delay_us=round(subagents.delay_s * 1e6),
        )
        for caller in callers
        for _ in range(1 + _pick(subagents.together, rng))
    ]


def _scales(profile: Profile, rng: np.random.Generator) -> tuple[int, int, float, float]:
    """Steps, first prompt, mean observation and mean output of a session: a Gaussian copula."""
    tables = (profile.steps, profile.first_prompt, profile.observation, profile.output)
    scores = np.linalg.cholesky(profile.correlation) @ rng.standard_normal(len(tables))
    values = map(_value, tables, map(_NORMAL.cdf, scores.tolist()))
    steps, first, observation, output = values
    return max(round(steps), 1), max(round(first), 1), observation, output


def _tool_chain(tools: list[Tool], num: int, rng: np.random.Generator) -> list[int]:
    """Index of the tool of every step."""
    if num == 1:
        return [_pick([tool.last for tool in tools], rng)]
    chain = [_pick([tool.first for tool in tools], rng)]
    bounds = [list(accumulate(tool.next)) for tool in tools]
    for level in rng.random(num - 2).tolist():
        chain.append(_at(bounds[chain[-1]], level))
    return [*chain, _pick([tool.last for tool in tools], rng)]


def _draw_prefix(profile: Profile, first: int, rng: np.random.Generator) -> Prefix:
    """A shared prefix shorter than the first prompt, or an empty one."""
    shares = [prefix.share for prefix in profile.prefixes]
    own = Prefix(name="", tokens=0, share=max(1 - sum(shares), 0.0))
    prefixes = [*profile.prefixes, own]
    prefix = prefixes[_pick([*shares, own.share], rng)]
    return prefix if prefix.tokens < first else own


def _prompts(
    profile: Profile,
    prefix_tokens: int,
    first: int,
    observed: list[int],
    outputs: list[int],
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Kept and new tokens of every step; ``observed[k]`` comes in after step ``k``."""
    if profile.replaces_observation:
        return _replacing_prompts(prefix_tokens, first, observed, outputs)
    prompts = [(prefix_tokens, first - prefix_tokens)]
    limit = _limit(profile.compaction, first, rng)
    levels = rng.random(len(outputs) - 1).tolist()
    for observation, output, level in zip(observed[:-1], outputs[:-1], levels, strict=True):
        prompt = sum(prompts[-1])
        if profile.compaction and prompt + output + observation > limit:
            summary = round(_value(profile.compaction.summary, rng.random()))
            prompts.append((prefix_tokens, max(summary - prefix_tokens, 1)))
        elif profile.cut and level < profile.cut.probability:
            prompts.append(_cut_prompt(profile.cut, prompt + output, rng))
        elif level > 1 - profile.trim:
            prompts.append((prompt, observation))
        else:
            prompts.append((prompt + output, observation))
    return prompts


def _replacing_prompts(
    prefix_tokens: int, first: int, observed: list[int], outputs: list[int]
) -> list[tuple[int, int]]:
    """Every prompt is the first one, the outputs so far, and the last observation."""
    prompts = [(prefix_tokens, first - prefix_tokens)]
    kept = first
    for observation, output in zip(observed[:-1], outputs[:-1], strict=True):
        prompts.append((kept, output + observation))
        kept += output
    return prompts


def _limit(compaction: Compaction | None, first: int, rng: np.random.Generator) -> float:
    """A session's context limit; infinite where it has none or began beyond it."""
    if compaction is None or rng.random() >= compaction.share:
        return math.inf
    limit = _value(compaction.limit, rng.random())
    return limit if first <= limit else math.inf


def _cut_prompt(cut: Cut, context: int, rng: np.random.Generator) -> tuple[int, int]:
    kept = min(int(context * _value(cut.kept, rng.random())), context)
    new = round((context - kept) * _value(cut.new, rng.random()))
    return kept, max(new, 1)


def _step(prompt: tuple[int, int], output: int, tool: Tool, gap_us: int) -> StepScript:
    kept, new = prompt
    return StepScript(
        kept_tokens=kept,
        new_tokens=new,
        output_tokens=output,
        tool=tool.name,
        tool_us=round(gap_us * tool.in_tool),
        gap_us=gap_us,
    )


def quantiles(
    tables: Sequence[Table], rows: NDArray[np.intp], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The quantile at each level, each from the table of its row."""
    logs = np.log1p(np.asarray(tables))
    left = np.clip(np.searchsorted(_LEVELS, levels, side="right") - 1, 0, len(LEVELS) - 2)
    weight = (levels - _LEVELS[left]) / (_LEVELS[left + 1] - _LEVELS[left])
    values: NDArray[np.float64] = np.expm1(
        logs[rows, left] * (1 - weight) + logs[rows, left + 1] * weight
    )
    return values


def _value(table: Table, level: float) -> float:
    return float(quantiles([table], np.zeros(1, dtype=np.intp), np.array([level]))[0])


def _by_tool(
    tables: Sequence[Table], tools: Sequence[int], rng: np.random.Generator
) -> NDArray[np.float64]:
    return quantiles(tables, np.asarray(tools), rng.random(len(tools)))


def _whole(values: NDArray[np.float64]) -> list[int]:
    """Tokens: whole, and at least one."""
    return [max(round(value), 1) for value in values.tolist()]


def _pick(weights: Sequence[float], rng: np.random.Generator) -> int:
    bounds = list(accumulate(weights))
    return _at(bounds, rng.random() * bounds[-1])


def _at(bounds: list[float], level: float) -> int:
    """The interval that a level falls in; the last one if sums fall short of it by rounding."""
    return bisect_right(bounds, level, hi=len(bounds) - 1)
