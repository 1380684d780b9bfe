"""Agent traces: one JSON object per task with its ``steps``, one per LLM call, in call order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from saga.traces.base import Line, ReadLog, RecordError, microseconds
from saga.traces.records import PromptTokens, Seconds, Tokens, decode
from saga.traces.reuse import kept_tokens
from saga.traces.script import SessionScript, StepScript, WorkflowScript


class Step(Struct):
    """One LLM call as recorded. Fields that are not named here are ignored."""

    prompt_tokens: PromptTokens
    output_tokens: Tokens
    kept_tokens: Tokens | None = None
    """Shared with an earlier prompt of the task; an infinite cache would hit them."""
    keep_prev_blocks: Tokens | None = None
    """Blocks shared with exactly the previous prompt (weka)."""
    reset: bool = False
    start: Seconds | None = None
    llm_seconds: Seconds | None = None
    gap_seconds: Seconds | None = None
    tool: str | None = None
    tool_seconds: Seconds | None = None
    user_seconds: Seconds | None = None
    gap_to_next_start_s: Seconds | None = None
    gap_to_next_call_end_s: Seconds | None = None

    @property
    def waited(self) -> float | None:
        """Seconds in a tool and for a person, or None where neither was measured."""
        if self.tool_seconds is None and self.user_seconds is None:
            return None
        return (self.tool_seconds or 0.0) + (self.user_seconds or 0.0)

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.output_tokens


Steps = Annotated[list[Step], Meta(min_length=1)]


class Shared(Struct):
    """Tokens that every session with the same two numbers begins with (weka)."""

    tool_tokens: Tokens = 0
    system_tokens: Tokens = 0


class Subagent(Shared, kw_only=True):
    start: Seconds
    """When its report came back. All 32 of the weka file fit their parent's tool call only if this
    is the end: ``start - duration_s`` is within a second of the end of the call that spawned it."""
    duration_s: Seconds
    steps: Steps


class Task(Shared, kw_only=True):
    task: str
    steps: Steps
    t0_epoch: Seconds | None = None
    kind: str | None = None
    domain: str | None = None
    block_size: Annotated[int, Meta(ge=1)] = 1
    subagents: list[Subagent] = []


_TASK = msgspec.json.Decoder(Task)


def read_agent(
    lines: Iterable[Line], log: ReadLog, *, agent_type: str
) -> Iterator[tuple[int, WorkflowScript]]:
    """Workflows with the lines they were read from; ``submitted_us`` counts from the epoch."""
    for line in lines:
        try:
            yield line.number, _workflow(decode(line.text, _TASK), agent_type, log)
        except RecordError as error:
            log.problem(line.number, str(error))


def _workflow(task: Task, agent_type: str, log: ReadLog) -> WorkflowScript:
    root = _session(task, task.steps, task.block_size, log)
    submitted = None
    if task.t0_epoch is not None:
        submitted = microseconds(task.t0_epoch + (task.steps[0].start or 0.0))
    return WorkflowScript(
        id=task.task,
        sessions=tuple(_with_subagents(task, root, log)) if task.subagents else (root,),
        agent_type=task.kind or task.domain or agent_type,
        submitted_us=submitted,
    )


def _session(shared: Shared, steps: Sequence[Step], block: int, log: ReadLog) -> SessionScript:
    """One chain; interleaved actors stay in it. The prefix counts if the first prompt is longer."""
    _check_starts(steps)
    prefix_tokens = shared.tool_tokens + shared.system_tokens
    if prefix_tokens >= steps[0].prompt_tokens:
        prefix_tokens = 0
    kept = [prefix_tokens]
    kept += (_kept_tokens(a, b, block, prefix_tokens, log) for a, b in pairwise(steps))
    gaps = [*(_gap_seconds(a, b, log) for a, b in pairwise(steps)), 0.0]
    name = f"weka/{shared.tool_tokens}+{shared.system_tokens}"
    return SessionScript(
        steps=tuple(_step_script(*parts, log) for parts in zip(steps, kept, gaps, strict=True)),
        prefix=name if prefix_tokens else None,
        prefix_tokens=prefix_tokens,
    )


def _step_script(step: Step, kept: int, gap: float, log: ReadLog) -> StepScript:
    if step.output_tokens == 0:
        log.note("steps without output, played with 1 token")
    gap_us = microseconds(gap)
    return StepScript(
        kept_tokens=kept,
        new_tokens=step.prompt_tokens - kept,
        output_tokens=max(step.output_tokens, 1),
        tool=step.tool,
        tool_us=min(microseconds(step.tool_seconds or 0.0), gap_us),
        gap_us=gap_us,
    )


def _check_starts(steps: Sequence[Step]) -> None:
    starts = [(index, step.start) for index, step in enumerate(steps) if step.start is not None]
    for (_, before), (index, start) in pairwise(starts):
        if start < before:
            raise RecordError(f"steps[{index}].start is {start}, before the previous {before}")


def _kept_tokens(before: Step, step: Step, block: int, prefix_tokens: int, log: ReadLog) -> int:
    """Tokens of the prompt shared with the context that ``before`` left.

    The files count against prompts only, whole blocks of them where they have blocks.
    """
    if step.reset or step.kept_tokens is None:
        log.note("prompts with unknown reuse, played as keeping no more than the declared prefix")
        return min(prefix_tokens, before.context, step.prompt_tokens - 1)
    kept = step.kept_tokens
    if step.keep_prev_blocks is not None:
        kept = min(kept, step.keep_prev_blocks * block)
    if kept > before.context:
        log.note("prompts sharing more with an older prompt than the previous context is long")
    return kept_tokens(
        kept, block, step.prompt_tokens, (before.prompt_tokens, before.output_tokens)
    )


def _gap_seconds(step: Step, after: Step, log: ReadLog) -> float:
    """Return time: from the end of ``step`` to the start of ``after``, best source first."""
    if step.gap_seconds is not None:
        return step.gap_seconds
    between = None
    if step.start is not None and after.start is not None:
        between = after.start - step.start
        if step.llm_seconds is not None and between >= step.llm_seconds:
            return between - step.llm_seconds
    if step.waited is not None:
        return step.waited if between is None else min(step.waited, between)
    for whole in (step.gap_to_next_start_s, step.gap_to_next_call_end_s, between):
        if whole is not None:
            log.note("gaps known only with an LLM call inside them (upper bounds)")
            return whole
    log.note("gaps unknown, played as 0")
    return 0.0


def _with_subagents(task: Task, root: SessionScript, log: ReadLog) -> list[SessionScript]:
    """The root, its gaps without the time it waited for sub-agents, and the sub-agents."""
    starts = [_known_start(index, step) for index, step in enumerate(task.steps)]
    ends = [
        start + (step.llm_seconds or 0.0) for start, step in zip(starts, task.steps, strict=True)
    ]
    waits = [0.0] * len(starts)
    children = []
    for agent in sorted(task.subagents, key=lambda agent: agent.start - agent.duration_s):
        began = agent.start - agent.duration_s
        spawn = max(bisect_right(starts, began) - 1, 0)
        blocking = spawn + 1 < len(starts) and starts[spawn + 1] >= agent.start
        if blocking:
            waits[spawn] = max(waits[spawn], agent.start - ends[spawn])
        child = _session(agent, agent.steps, task.block_size, log)
        delay_us = microseconds(max(began - ends[spawn], 0.0))
        children.append(
            replace(child, parent=0, spawn_step=spawn, delay_us=delay_us, blocking=blocking)
        )
    steps = tuple(map(_less_wait, root.steps, waits))
    return [replace(root, steps=steps), *children]


def _known_start(index: int, step: Step) -> float:
    if step.start is None:
        raise RecordError(f"steps[{index}].start is missing, sub-agents cannot be placed")
    return step.start


def _less_wait(step: StepScript, wait: float) -> StepScript:
    gap_us = max(step.gap_us - microseconds(wait), 0)
    return replace(step, gap_us=gap_us, tool_us=min(step.tool_us, gap_us))
