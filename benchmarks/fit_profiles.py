"""Fit the profile workloads to real traces: ``python benchmarks/fit_profiles.py DATA_FOLDER``.

Writes src/saga/sim/profiles.json. The traces, their licences and what is known to be wrong with
them are in docs/workloads.md. Only quantiles, means and probabilities are carried over.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np

from saga.sim import paper
from saga.sim.profiles import (
    LEVELS,
    Agent,
    Compaction,
    Cut,
    Population,
    Prefix,
    Profile,
    Subagents,
    Table,
    Tool,
)
from saga.traces import SessionScript, StepScript, WorkflowScript, read_scripts

OUTPUT = Path(__file__).parent.parent / "src/saga/sim/profiles.json"
MAX_TOOLS = 8
"""The most frequent tools are told apart; the others are one."""
RARE = 0.01
"""Tools with a smaller share of the calls are not told apart."""
PRIOR_CALLS = 3
OTHER = "other"
GOES_ON = 0.95
"""A prompt that keeps at least this share of the context went on from it."""
SHRINKS = 0.7
"""A prompt of less than this share of the context before it was compacted."""
RESUMED_TOKENS = 40_000
"""First prompts of fresh sessions are shorter; the trace has two humps, with few between."""
LARGE_CONTEXT = 120_000
LARGEST_LIMIT = 200_000
LONGEST_USER_S = 600.0
"""A person who takes longer is taken to be away this long: TCT is to measure agents."""
SCHEMA_TOKENS = 2000
"""Tool schemas that the counts of SWE-agent's trace leave out: 1 to 3 thousand by estimate."""
MINISWE_PREFIX = 320
"""What the provider's cache hits in the first call of most tasks."""
SMALLEST_PAGE = 50
NOTHING: Table = (0.0,) * len(LEVELS)
ONE: Table = (1.0,) * len(LEVELS)


def table(values: Iterable[float], weights: Iterable[int] | None = None) -> Table:
    """Quantiles at LEVELS, to three digits; a value counts as often as its weight says."""
    repeats = 1 if weights is None else list(weights)
    found = np.quantile(np.repeat(list(values), repeats), LEVELS)
    return tuple(float(f"{value:.3g}") for value in found.tolist())


def shares(counts: Counter[str | None], names: Sequence[str | None]) -> list[float]:
    total = counts.total() or 1
    return [round(counts[name] / total, 5) for name in names]


def fit_profile(
    sessions: Sequence[SessionScript],
    *,
    named: Sequence[SessionScript] | None = None,
    exact_reuse: bool = False,
    prefixes: Sequence[Prefix] = (),
) -> Profile:
    """The profile of sessions; what goes by tool from the ``named`` ones among them.

    The two means count by steps, or the wide means of short sessions would be stretched over long
    ones. Without ``exact_reuse`` a prompt that keeps nothing is one whose reuse is unknown: it is
    left out, and nothing is cut.
    """
    long = [session for session in sessions if observations(session)]
    lengths = [len(session.steps) for session in long]
    scales = (
        lengths,
        [float(session.steps[0].prompt_tokens) for session in long],
        [float(np.mean(observations(session))) for session in long],
        [mean_output(session) for session in long],
    )
    pairs = [pair for session in sessions for pair in pairwise(session.steps)]
    known = [(a, b) for a, b in pairs if exact_reuse or b.kept_tokens]
    cuts = [(a, b) for a, b in known if not (goes_on(a, b) or shrinks(a, b))]
    trims = [b for a, b in known if goes_on(a, b) and b.kept_tokens < context(a)]
    return Profile(
        steps=table(len(session.steps) for session in sessions),
        first_prompt=table(session.steps[0].prompt_tokens for session in sessions),
        observation=table(scales[2], lengths),
        output=table(scales[3], lengths),
        correlation=correlation(scales),
        tools=fit_tools(named or sessions),
        prefixes=list(prefixes),
        trim=round(len(trims) / len(known), 4),
        cut=fit_cut(cuts, len(known)) if exact_reuse and cuts else None,
        compaction=fit_compaction(sessions) if exact_reuse else None,
    )


def context(step: StepScript) -> int:
    return step.prompt_tokens + step.output_tokens


def goes_on(before: StepScript, step: StepScript) -> bool:
    return step.kept_tokens >= GOES_ON * (before.prompt_tokens)


def observations(session: SessionScript) -> list[int]:
    """New tokens of the steps that went on from the one before."""
    return [b.new_tokens for a, b in pairwise(session.steps) if goes_on(a, b)]


def mean_output(session: SessionScript) -> float:
    return float(np.mean([step.output_tokens for step in session.steps]))


def correlation(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    """Pearson's correlation of normal scores, drawn in a little so that it stays definite."""
    normal = NormalDist()
    scores = []
    for column in columns:
        ranks = np.argsort(np.argsort(column, kind="stable"), kind="stable")
        scores.append([normal.inv_cdf((rank + 0.5) / len(column)) for rank in ranks.tolist()])
    matrix = np.corrcoef(scores) * 0.99 + np.eye(len(columns)) * 0.01
    return [[round(value, 3) for value in row] for row in matrix.tolist()]


def shrinks(before: StepScript, step: StepScript) -> bool:
    return step.prompt_tokens < SHRINKS * context(before)


def fit_compaction(sessions: Sequence[SessionScript]) -> Compaction | None:
    """From the prompts that shrink when a context is large. Sessions that grow beyond LARGEST_LIMIT
    have a larger window, and so no limit."""
    below = [session for session in sessions if session.steps[0].prompt_tokens < LARGE_CONTEXT]
    unlimited = sum(max(map(context, session.steps)) > LARGEST_LIMIT for session in below)
    compacted = [
        [(context(a), b.prompt_tokens) for a, b in pairwise(session.steps) if shrinks(a, b)]
        for session in below
    ]
    large = [[pair for pair in pairs if pair[0] > LARGE_CONTEXT] for pairs in compacted]
    limited = sum(map(bool, large))
    if not limited:
        return None
    limits, summaries = zip(*(pair for pairs in large for pair in pairs), strict=True)
    return Compaction(
        share=round(limited / (limited + unlimited), 4),
        limit=table(limits),
        summary=table(summaries),
    )


def fit_cut(cuts: Sequence[tuple[StepScript, StepScript]], num_steps: int) -> Cut:
    """A prompt that comes back to an older and longer one is taken to stay as long as it was."""
    dropped = [context(a) - b.kept_tokens for a, b in cuts]
    return Cut(
        probability=round(len(cuts) / num_steps, 4),
        kept=table(b.kept_tokens / context(a) for a, b in cuts),
        new=table(
            min(b.new_tokens / tokens, 1.0) for (_, b), tokens in zip(cuts, dropped, strict=True)
        ),
    )


def fit_tools(sessions: Sequence[SessionScript]) -> list[Tool]:
    """The tool chain, and the sizes and gaps that go by tool."""
    calls = Counter(step.tool for session in sessions for step in session.steps)
    rare = calls.total() * RARE
    frequent = calls.most_common(MAX_TOOLS + (None in calls))
    names = [name for name, count in frequent if count >= rare]
    if len(calls) > len(names):
        names.append(OTHER)
    chains = [
        [step.tool if step.tool in names else OTHER for step in session.steps]
        for session in sessions
    ]
    first = Counter(chain[0] for chain in chains if len(chain) > 1)
    last = Counter(chain[-1] for chain in chains)
    overall = Counter(tool for chain in chains for tool in chain)
    after: dict[str | None, Counter[str | None]] = {name: Counter() for name in names}
    for chain in chains:
        for tool, following in pairwise(chain[:-1]):
            after[tool][following] += 1
    return [
        Tool(
            name=name,
            first=shares(first, [name])[0],
            last=shares(last, [name])[0],
            next=smoothed(after[name], overall, names),
            **fit_effects(name, sessions, chains),
        )
        for name in names
    ]


def smoothed(
    counts: Counter[str | None], overall: Counter[str | None], names: Sequence[str | None]
) -> list[float]:
    """Shares with a few calls from the whole added, so that no tool follows itself for ever."""
    total = counts.total() + PRIOR_CALLS
    prior = shares(overall, names)
    return [
        round((counts[name] + PRIOR_CALLS * share) / total, 5)
        for name, share in zip(names, prior, strict=True)
    ]


def fit_effects(
    name: str | None, sessions: Sequence[SessionScript], chains: Sequence[list[str | None]]
) -> dict[str, Any]:
    """What a call of the tool does to the sizes and times around it."""
    output: list[float] = []
    observation: list[float] = []
    gaps_us: list[int] = []
    tool_us: list[int] = []
    for session, chain in zip(sessions, chains, strict=True):
        mean_observation = float(np.mean(observations(session) or [1]))
        output += (
            step.output_tokens / mean_output(session)
            for step, tool in zip(session.steps, chain, strict=True)
            if tool == name
        )
        for (before, step), tool in zip(pairwise(session.steps), chain, strict=False):
            if tool != name:
                continue
            gaps_us.append(before.gap_us)
            tool_us.append(before.tool_us)
            if goes_on(before, step):
                observation.append(step.new_tokens / mean_observation)
    return {
        "output": table(output),
        "observation": table(observation) if observation else NOTHING,
        "gap_s": table(gap / 1e6 for gap in gaps_us) if gaps_us else NOTHING,
        "in_tool": round(sum(tool_us) / sum(gaps_us), 3) if sum(gaps_us) else 0.0,
    }


def fit_mini_swe(data: Path) -> Population:
    sessions = roots(data / "miniswe_deepseek.jsonl.gz")
    prefix = Prefix("mini-swe", MINISWE_PREFIX, 1.0)
    return Population(
        "mini-swe-agent on SWE-bench: shell commands, one chain",
        [Agent("mini-swe", 1.0, mean_steps(sessions), fit_profile(sessions, prefixes=[prefix]))],
    )


def fit_swe_agent(data: Path) -> Population:
    """Tools go by the tasks that name them; the others hide them all."""
    sessions = roots(data / "thunder_sweagent_glm45.jsonl.gz")
    named = [session for session in sessions if session.steps[0].tool is not None]
    prefix = Prefix("swe-agent", SCHEMA_TOKENS, 1.0)
    profile = fit_profile(sessions, named=named, prefixes=[prefix])
    profile.first_prompt = tuple(value + SCHEMA_TOKENS for value in profile.first_prompt)
    return Population(
        "SWE-agent on SWE-bench Lite: shell and editor, one chain",
        [Agent("swe-agent", 1.0, mean_steps(sessions), profile)],
    )


def fit_tau2(data: Path) -> Population:
    """One agent type per domain. The tools ran in memory: they get the paper's database times."""
    scripts = read_scripts(data / "tau2_bench.jsonl.gz").scripts
    database = paper.TOOLS["database_query"]
    gap_s = table(database.sample(np.linspace(0, 1, 10_001)) / 1e6)
    agents = []
    for domain, count in sorted(Counter(script.agent_type for script in scripts).items()):
        sessions = [script.sessions[0] for script in scripts if script.agent_type == domain]
        smallest = min(session.steps[0].prompt_tokens for session in sessions)
        prefix = Prefix(f"tau2-{domain}", smallest // 64 * 64, 1.0)
        profile = fit_profile(sessions, prefixes=[prefix])
        for tool in profile.tools:
            if tool.name is not None:
                tool.gap_s, tool.in_tool = gap_s, 1.0
        agents.append(Agent(f"tau2-{domain}", count / len(scripts), mean_steps(sessions), profile))
    return Population("tau2-bench customer service: tools and a talking customer", agents)


def fit_claude_code(data: Path, shell: Profile) -> Population:
    """Fresh sessions and resumed ones, which begin with a long context and are shorter."""
    scripts = read_scripts(data / "weka_claude_code.jsonl.gz").scripts
    sessions = [script.sessions[0] for script in scripts]
    fresh = [one for one in sessions if one.steps[0].prompt_tokens < RESUMED_TOKENS]
    resumed = [one for one in sessions if one.steps[0].prompt_tokens >= RESUMED_TOKENS]
    mean = mean_steps(sessions)
    share = round(len(fresh) / len(sessions), 4)
    subagents = fit_subagents(scripts, len(fresh), shell)
    return Population(
        "Claude Code sessions: long contexts, people who pause, sub-agents",
        [
            Agent("claude-code", share, mean, fit_grafted(fresh, shell), subagents),
            Agent("claude-code", 1 - share, mean, fit_grafted(resumed, shell)),
        ],
    )


def fit_grafted(sessions: Sequence[SessionScript], shell: Profile) -> Profile:
    """Structure and sizes of the sessions; their tools have no names and coarse times: the
    shell's."""
    profile = fit_profile(sessions, exact_reuse=True, prefixes=common_prefixes(sessions))
    profile.tools = graft(profile.tools, shell.tools)
    return profile


def fit_subagents(
    scripts: Sequence[WorkflowScript], num_sessions: int, shell: Profile
) -> Subagents:
    """Of the fresh sessions: nine in ten of those that call any are fresh."""
    children = [child for script in scripts for child in script.sessions[1:]]
    calls = [Counter(child.spawn_step for child in script.sessions[1:]) for script in scripts]
    together = Counter(count for call in calls for count in call.values())
    return Subagents(
        probability=round(sum(map(bool, calls)) / num_sessions, 4),
        calling_steps=table(len(call) for call in calls if call),
        together=[
            round(together[count] / together.total(), 4) for count in range(1, max(together) + 1)
        ],
        delay_s=round(float(np.median([c.delay_us for c in children if c.blocking])) / 1e6, 3),
        profile=fit_grafted(children, shell),
    )


def common_prefixes(sessions: Sequence[SessionScript], most: int = 20) -> list[Prefix]:
    """The most frequent declared prefixes that at least two sessions begin with."""
    counts = Counter((session.prefix, session.prefix_tokens) for session in sessions)
    return [
        Prefix(f"claude-code/{name.removeprefix('weka/')}", tokens, round(count / len(sessions), 4))
        for (name, tokens), count in counts.most_common(most)
        if name is not None and count > 1
    ]


def graft(trace: Sequence[Tool], shell: Sequence[Tool]) -> list[Tool]:
    """Whether a step calls a tool, and its sizes, from ``trace``; which one, and its time, from
    ``shell``. After a step without a tool a person answers."""
    use = next(tool for tool in trace if tool.name is not None)
    none = next(tool for tool in trace if tool.name is None)
    use_index, none_index = trace.index(use), trace.index(none)

    def then(tool: Tool, weights: Sequence[float]) -> list[float]:
        total = sum(weights)
        using = [tool.next[use_index] * weight / total for weight in weights]
        return [round(value, 5) for value in (*using, tool.next[none_index])]

    tools = [
        Tool(
            name=one.name,
            first=round(use.first * one.first, 5),
            last=round(use.last * one.first, 5),
            next=then(use, one.next),
            output=use.output,
            observation=use.observation,
            gap_s=one.gap_s,
            in_tool=one.in_tool,
        )
        for one in shell
    ]
    person = msgspec.structs.replace(
        none,
        next=then(none, usual_shares(shell)),
        gap_s=tuple(min(gap, LONGEST_USER_S) for gap in none.gap_s),
    )
    return [*tools, person]


def usual_shares(tools: Sequence[Tool]) -> list[float]:
    """How often a long chain calls each tool."""
    chain = np.array([tool.next for tool in tools])
    found = np.linalg.matrix_power(chain / chain.sum(axis=1, keepdims=True), 64)[0]
    return [float(share) for share in found]


def fit_browser(data: Path) -> Population:
    """Three agents known by their quantiles; tools of WebVoyager, gaps of WebTestPilot."""
    tables = json.loads((data / "web_agent_quantiles.json").read_text())
    tools = fit_tools(roots(data / "webvoyager_gpt4v.jsonl.gz"))
    gap_s = regrid(tables["webtestpilot"]["gap_between_calls_s(browser+code)"])
    for tool in tools:
        tool.gap_s, tool.in_tool = gap_s, 1.0
    agents = [
        browser_agent(f"browser-{name.lower()}", tables[f"notte_web_{name}"], tools)
        for name in ("BrowserUse", "Convergence", "Notte")
    ]
    return Population("Browser agents that see one page at a time", agents)


def browser_agent(agent_type: str, tables: dict[str, Any], tools: Sequence[Tool]) -> Agent:
    """The page is what a call's prompt holds beyond the first prompt and the outputs so far."""
    steps, outputs = regrid(tables["steps_per_run"]), regrid(tables["output_tokens_per_call"])
    mean_steps, mean_output = (
        tables["steps_per_run"]["mean"],
        tables["output_tokens_per_call"]["mean"],
    )
    num = np.interp(np.linspace(0, 1, 1001), LEVELS, steps)
    calls_before = (np.mean(num**2) / np.mean(num) - 1) / 2  # on average over calls
    calls_before *= mean_steps / (mean_steps - 1)  # over those after the first, which has no page
    start = tables["first_call_input"]["mean"] + mean_output * calls_before
    later = [1 / mean_steps + (1 - 1 / mean_steps) * level for level in LEVELS]
    prompts = np.interp(later, LEVELS, regrid(tables["input_tokens_per_call"]))
    pages = tuple(float(max(round(prompt - start), SMALLEST_PAGE)) for prompt in prompts)
    prefix_tokens = int(tables["first_call_input"]["p1"]) // 64 * 64
    profile = Profile(
        steps=steps,
        first_prompt=regrid(tables["first_call_input"]),
        observation=ONE,
        output=ONE,
        correlation=np.eye(4).tolist(),
        tools=[msgspec.structs.replace(tool, output=outputs, observation=pages) for tool in tools],
        prefixes=[Prefix(agent_type, prefix_tokens, 1.0)],
        replaces_observation=True,
    )
    return Agent(agent_type, 1 / 3, mean_steps, profile)


def regrid(percentiles: dict[str, float]) -> Table:
    """A table from percentiles p1 to p99; what lies beyond is cut off."""
    known = sorted(
        (int(name[1:]) / 100, value) for name, value in percentiles.items() if name[0] == "p"
    )
    levels, values = zip(*known, strict=True)
    logs = np.interp(LEVELS, levels, np.log1p(values))
    return tuple(float(f"{value:.3g}") for value in np.expm1(logs).tolist())


def roots(path: Path) -> list[SessionScript]:
    return [script.sessions[0] for script in read_scripts(path).scripts]


def mean_steps(sessions: Sequence[SessionScript]) -> float:
    return round(float(np.mean([len(session.steps) for session in sessions])), 1)


def main(data: Path) -> None:
    mini_swe = fit_mini_swe(data)
    workloads = {
        "claude-code": fit_claude_code(data, mini_swe.agents[0].profile),
        "mini-swe": mini_swe,
        "swe-agent": fit_swe_agent(data),
        "tau2": fit_tau2(data),
        "browser": fit_browser(data),
    }
    lines = [
        f"{json.dumps(name)}: {msgspec.json.encode(workload).decode()}"
        for name, workload in workloads.items()
    ]
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
