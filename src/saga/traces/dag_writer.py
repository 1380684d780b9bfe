"""Writing aiperf's ``dag_jsonl``, with text of the right size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from saga.traces.base import Times
from saga.traces.dag import ISOLATED
from saga.traces.names import SessionNames
from saga.traces.script import SessionScript, StepScript, WorkflowScript
from saga.traces.text import CHARS_PER_TOKEN, filler


class DagWriter:
    """A line per session. A turn adds to the context where all do; else it has its whole prompt."""

    header = ()
    leaves_out = (
        "arrivals, tenants, agent types, tools, how long calls took, forks of a part of a context, "
        "that nobody waits for a sub-agent"
    )

    def __init__(self) -> None:
        self._names = SessionNames()

    def rows(self, script: WorkflowScript, times: Times | None) -> Iterator[dict[str, Any]]:
        names = self._names.of(script)
        branches: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for number, session in enumerate(script.sessions):
            if session.parent is not None:
                branches[session.parent, session.spawn_step].append(number)
        for number, session in enumerate(script.sessions):
            adds = _adds(session)
            row: dict[str, Any] = {"session_id": names[number]}
            if not adds:
                row["context_mode"] = ISOLATED
            prompts = _added(script, number, names) if adds else _whole(session, names[number])
            row["turns"] = [
                _turn(session, index, messages)
                | _branched(script, number, index, branches[number, index], names)
                for index, messages in enumerate(prompts)
            ]
            yield row


def _context(step: StepScript) -> int:
    return step.prompt_tokens + step.output_tokens


def _adds(session: SessionScript) -> bool:
    return all(after.kept_tokens == _context(step) for step, after in pairwise(session.steps))


def _forks(script: WorkflowScript, number: int) -> bool:
    """A fork goes on from its parent's whole context."""
    session = script.sessions[number]
    if session.parent is None or not _adds(session):
        return False
    spawning = script.sessions[session.parent].steps[session.spawn_step]
    return session.forked_tokens == session.steps[0].kept_tokens == _context(spawning)


def _added(
    script: WorkflowScript, number: int, names: Sequence[str]
) -> Iterator[list[dict[str, str]]]:
    session, name = script.sessions[number], names[number]
    first = session.steps[0]
    if _forks(script, number):
        yield [_user(filler(f"{name}/0", first.new_tokens))]
    elif session.prefix is not None and first.kept_tokens == session.prefix_tokens > 0:
        system = {"role": "system", "content": filler(session.prefix, session.prefix_tokens)}
        yield [system, _user(filler(f"{name}/0", first.new_tokens))]
    else:
        yield [_user(filler(f"{name}/0", first.prompt_tokens))]
    for index, step in enumerate(session.steps[1:], 1):
        yield [_user(filler(f"{name}/{index}", step.new_tokens))]


def _whole(session: SessionScript, name: str) -> Iterator[list[dict[str, str]]]:
    context = ""
    for index, step in enumerate(session.steps):
        kept = context[: step.kept_tokens * CHARS_PER_TOKEN]
        prompt = kept + filler(f"{name}/{index}", step.prompt_tokens - len(kept) // CHARS_PER_TOKEN)
        yield [_user(prompt)]
        context = prompt + filler(f"{name}/{index}/answer", step.output_tokens)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _turn(session: SessionScript, index: int, messages: list[dict[str, str]]) -> dict[str, Any]:
    step = session.steps[index]
    delay_us = session.steps[index - 1].gap_us if index else session.delay_us
    turn: dict[str, Any] = {
        "messages": messages,
        "max_tokens": step.output_tokens,
        "extra": {"ignore_eos": True},
    }
    if delay_us and (index or session.parent is not None):
        turn["delay"] = delay_us / 1000
    return turn


def _branched(
    script: WorkflowScript, number: int, index: int, children: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """A sub-agent that is not waited for is joined as late as possible: there is no never."""
    last = len(script.sessions[number].steps) - 1
    forks: list[Any] = []
    spawns: list[Any] = []
    for child in children:
        name = names[child]
        if _forks(script, child):
            forks.append(name if index == last else {"child": name, "background": True})
        elif script.sessions[child].blocking or index == last:
            spawns.append(name)
        else:
            spawns.append({"children": [name], "join_at": last})
    return ({"forks": forks} if forks else {}) | ({"spawns": spawns} if spawns else {})
