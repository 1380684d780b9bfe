"""Writing Dynamo's agentic Mooncake rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from saga.traces.base import Times
from saga.traces.blocks import BLOCK_TOKENS, BlockIds
from saga.traces.names import SessionNames
from saga.traces.script import WorkflowScript
from saga.traces.timeline import instant_times


class AgenticWriter:
    """A row per step, after those that it waits for."""

    header = ()
    leaves_out = (
        "tenants, agent types, how long calls took, the tool of a session's last step, names of "
        f"prefixes, what is kept of a block of {BLOCK_TOKENS} tokens"
    )

    def __init__(self) -> None:
        self._blocks = BlockIds()
        self._names = SessionNames()

    def rows(self, script: WorkflowScript, times: Times | None) -> Iterator[dict[str, Any]]:
        names = self._names.of(script)
        ids = self._blocks.of_workflow(script)
        spans = instant_times(script) if times is None else times
        spawned: defaultdict[tuple[int | None, int], list[int]] = defaultdict(list)
        for number, session in enumerate(script.sessions):
            spawned[session.parent, session.spawn_step].append(number)
        for number, index in script.in_order():
            session = script.sessions[number]
            step = session.steps[index]
            row: dict[str, Any] = {
                "request_id": _request(script, number, index),
                "session_id": names[number],
                "input_length": step.prompt_tokens,
                "output_length": step.output_tokens,
                "hash_ids": ids[number][index],
                "prefix_reset": index == 0,
            }
            if branches := spawned[number, index]:
                row["branches"] = [_request(script, child, 0) for child in branches]
            if index:
                joined = (c for c in spawned[number, index - 1] if script.sessions[c].blocking)
                row |= _after(script, number, index, list(joined), spans[number][index - 1][1])
            elif session.parent is not None:
                row["wait_for"] = [_request(script, session.parent, session.spawn_step)]
                row["delay"] = session.delay_us / 1000
            elif script.submitted_us is not None:
                row["timestamp"] = script.submitted_us / 1000
            yield row


def _after(
    script: WorkflowScript, number: int, index: int, joined: Sequence[int], end_us: int
) -> dict[str, Any]:
    """What a step waits for: the one before it, its tool, and sub-agents."""
    before = script.sessions[number].steps[index - 1]
    last = ((child, len(script.sessions[child].steps) - 1) for child in joined)
    told: dict[str, Any] = {
        "wait_for": [_request(script, *place) for place in ((number, index - 1), *last)],
        "delay": (before.gap_us - before.tool_us) / 1000,
    }
    if before.tool_us:
        told["tool_wait_ms"] = before.tool_us / 1000
    if before.tool is not None:
        tool = {
            "tool_call_id": f"{_request(script, number, index - 1)}/tool",
            "tool_class": before.tool,
            "started_at_unix_ms": end_us // 1000,
            "ended_at_unix_ms": (end_us + before.tool_us) // 1000,
            "duration_ms": before.tool_us / 1000,
            "status": "unknown",
        }
        told["tool_events"] = [tool]
    return told


def _request(script: WorkflowScript, number: int, index: int) -> str:
    return f"{script.id}/{number}/{index}"
