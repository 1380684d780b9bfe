"""What a trace holds, in numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from saga.traces.base import TraceFile
from saga.traces.script import SessionScript, StepScript, WorkflowScript

NUM_TOOLS = 10


def trace_stats(trace: TraceFile) -> dict[str, Any]:
    """Statistics of a trace as JSON-ready values; times in seconds, sizes in tokens.

    ``ideal_reuse`` is the share of prompt tokens that an infinite cache would hit: all kept
    ones, but a shared prefix not the first time. ``arrivals`` is
    None without arrival times; ``cv`` is the coefficient of variation of the times between them.
    """
    sessions = [session for script in trace.scripts for session in script.sessions]
    steps = [step for session in sessions for step in session.steps]
    gaps = [step.gap_us / 1e6 for session in sessions for step in session.steps[:-1]]
    prefixes = {session.prefix: session.prefix_tokens for session in sessions if session.prefix}
    prompt_tokens = sum(step.prompt_tokens for step in steps)
    hit_tokens = sum(step.kept_tokens for step in steps) - _computed_prefix_tokens(sessions)
    return {
        "file": str(trace.path),
        "kind": trace.kind,
        "workflows": len(trace.scripts),
        "sessions": len(sessions),
        "steps": len(steps),
        "steps_per_workflow": _quantiles([s.num_steps for s in trace.scripts], p90=0.9, max=1.0),
        "prompt_tokens": _quantiles([step.prompt_tokens for step in steps], p90=0.9),
        "new_tokens": _quantiles([step.new_tokens for step in steps], p90=0.9),
        "output_tokens": _quantiles([step.output_tokens for step in steps], p90=0.9),
        "gap_s": _quantiles(gaps, p90=0.9, p99=0.99),
        "tools": _tools(steps),
        "ideal_reuse": hit_tokens / prompt_tokens,
        "arrivals": _arrivals(trace.scripts),
        "shared_prefixes": len(prefixes),
        "shared_prefix_tokens": _quantiles(list(prefixes.values()), p90=0.9),
        "problems": len(trace.problems),
        "notes": list(trace.notes),
    }


def _computed_prefix_tokens(sessions: Iterable[SessionScript]) -> int:
    """Tokens that count as kept, but that the first session with a shared prefix computes."""
    first: dict[str, int] = {}
    for session in sessions:
        if session.prefix is not None:
            own = min(session.prefix_tokens, session.steps[0].kept_tokens)
            first.setdefault(session.prefix, own)
    return sum(first.values())


def _quantiles(values: Sequence[float], **levels: float) -> dict[str, float] | None:
    """The median and the named quantiles; None of nothing."""
    if not values:
        return None
    wanted = {"p50": 0.5, **levels}
    found = np.quantile(values, list(wanted.values()))
    return dict(zip(wanted, map(float, found), strict=True))


def _tools(steps: Iterable[StepScript]) -> list[dict[str, Any]]:
    """The most frequent tools with the seconds spent in them, where measured."""
    counts: Counter[str] = Counter()
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for step in steps:
        if step.tool is None:
            continue
        counts[step.tool] += 1
        if step.tool_us:
            seconds[step.tool].append(step.tool_us / 1e6)
    return [
        {"tool": tool, "calls": calls, "seconds": _quantiles(seconds[tool], p95=0.95)}
        for tool, calls in counts.most_common(NUM_TOOLS)
    ]


def _arrivals(scripts: Iterable[WorkflowScript]) -> dict[str, float] | None:
    times = sorted(s.submitted_us for s in scripts if s.submitted_us is not None)
    if len(times) < 3 or times[0] == times[-1]:
        return None
    between = np.diff(times) / 1e6
    return {
        "rate_per_s": float(1 / between.mean()),
        "cv": float(between.std() / between.mean()),
    }
