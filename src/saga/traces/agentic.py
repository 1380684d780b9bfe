"""Dynamo's agentic Mooncake rows: one request per line, with the requests that it waits for.

A request is sent ``delay`` and ``tool_wait_ms`` after the last of those in ``wait_for`` has ended.
The rows do not tell how many tokens a block has: it follows from their numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from saga.traces.base import Line, ReadLog, RecordError
from saga.traces.blocks import BLOCK_TOKENS, FirstPrompts, shared_blocks
from saga.traces.check import check_script
from saga.traces.records import Milliseconds, PromptTokens, Tokens, decode
from saga.traces.reuse import kept_if_growing, kept_tokens
from saga.traces.script import SessionScript, StepScript, WorkflowScript
from saga.traces.timeline import SHRUNK

KIND = "agentic-mooncake"


class ToolEvent(Struct):
    tool_class: str
    duration_ms: Milliseconds = 0.0


class Row(Struct):
    """Fields that are not named here tell nothing more (``branches``, ``prefix_reset``)."""

    request_id: str
    session_id: str | None = None
    input_length: PromptTokens | None = None
    input_tokens: PromptTokens | None = None
    output_length: Tokens | None = None
    output_tokens: Tokens | None = None
    hash_ids: list[int] | None = None
    timestamp: Milliseconds | None = None
    created_time: Milliseconds | None = None
    delay: Milliseconds | None = None
    delay_ms: Milliseconds | None = None
    tool_wait_ms: Milliseconds | None = None
    wait_for: list[str] = []
    tool_events: list[ToolEvent] = []
    dependencies: list[msgspec.Raw] = []
    """Instead of ``wait_for`` in a later form of the rows, which is not read."""


_ROW = msgspec.json.Decoder(Row)


@dataclass(slots=True, eq=False)
class _Step:
    id: str
    line: int
    prompt_tokens: int
    output_tokens: int
    wait_for: tuple[str, ...]
    delay_us: int
    tool_us: int
    tool: str | None
    at_us: int | None
    shared_blocks: int | None
    """With the prompt before it in its session, or of the request that it waits for."""

    @property
    def wait_us(self) -> int:
        return self.delay_us + self.tool_us


@dataclass(slots=True, eq=False)
class _Session:
    name: str
    steps: list[_Step] = field(default_factory=list)
    first_ids: Sequence[int] = ()
    """Of the first prompt, if it shares nothing with the one it waits for."""
    last_ids: Sequence[int] | None = None
    parent: _Session | None = None
    spawn_step: int = 0


class _Blocks:
    """The sizes of a block that all rows so far fit."""

    def __init__(self) -> None:
        self.least, self.most = 1, 1 << 31

    def fit(self, tokens: int, blocks: int) -> None:
        """A prompt has its whole blocks, and perhaps a part of one."""
        least = max(self.least, tokens // (blocks + 1) + 1)
        most = self.most if blocks == 1 else min(self.most, (tokens - 1) // (blocks - 1))
        if least > most:
            raise RecordError(
                f"{blocks} hash_ids of {tokens} tokens: Expected blocks of {self.least} to "
                f"{self.most} tokens, as in the lines before"
            )
        self.least, self.most = least, most

    @property
    def tokens(self) -> int:
        """Blocks are powers of two, if that fits."""
        if self.least <= BLOCK_TOKENS <= self.most:
            return BLOCK_TOKENS
        if self.most == 1 << 31:
            return 1 << (self.least - 1).bit_length()
        power = 1 << (self.most.bit_length() - 1)
        return power if power >= self.least else self.most


def read_agentic(lines: Iterable[Line], log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
    """A workflow per session that waits for none, with those that wait for its requests."""
    reader = _Reader()
    for line in lines:
        try:
            reader.read(decode(line.text, _ROW), line.number)
        except RecordError as error:
            log.problem(line.number, str(error))
    return reader.workflows(log)


class _Reader:
    """Of the ids of blocks, those of each session's first and last prompt are held."""

    def __init__(self) -> None:
        self.sessions: dict[str, _Session] = {}
        self.places: dict[str, tuple[_Session, int]] = {}
        """Of requests: session and index."""
        self.blocks = _Blocks()

    def read(self, row: Row, line: int) -> None:
        if row.request_id in self.places:
            session, index = self.places[row.request_id]
            told = f"was in line {session.steps[index].line} already"
            raise RecordError(f"request_id {row.request_id!r} {told}")
        step = _step(row, line)
        if row.hash_ids:
            self.blocks.fit(step.prompt_tokens, len(row.hash_ids))
        name = row.request_id if row.session_id is None else row.session_id
        session = self.sessions.setdefault(name, _Session(name))
        self._reuse(session, step, row.hash_ids or None)
        self.places[step.id] = session, len(session.steps)
        session.steps.append(step)

    def _reuse(self, session: _Session, step: _Step, ids: Sequence[int] | None) -> None:
        before = session if session.steps else self._spawner(session, step)
        if ids is not None and before is not None and before.last_ids is not None:
            step.shared_blocks = shared_blocks(ids, before.last_ids)
        if not session.steps and not step.shared_blocks:
            session.first_ids = ids or ()
        session.last_ids = ids

    def _spawner(self, session: _Session, step: _Step) -> _Session | None:
        others = (self.places[name][0] for name in step.wait_for if name in self.places)
        return next((other for other in others if other is not session), None)

    def workflows(self, log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
        block = self.blocks.tokens
        prefixes = FirstPrompts()
        children: defaultdict[str, list[_Session]] = defaultdict(list)
        for session in self.sessions.values():
            session.first_ids = session.first_ids[: session.steps[0].prompt_tokens // block]
            prefixes.add(session.first_ids)
            session.parent = self._spawner(session, session.steps[0])
            if session.parent is not None:
                children[session.parent.name].append(session)
        reached: set[str] = set()
        for root in [one for one in self.sessions.values() if one.parent is None]:
            members = [root]
            for session in members:
                members += children[session.name]
            reached.update(session.name for session in members)
            line = min(session.steps[0].line for session in members)
            try:
                self._check_waits(members)
                builder = _Builder(members, self.places, prefixes, block, log)
                yield line, builder.script()
            except RecordError as error:
                log.problem(line, str(error))
        for session in self.sessions.values():
            if session.name not in reached:
                first = session.steps[0]
                log.problem(first.line, f"request {first.id!r} waits for itself")

    def _check_waits(self, members: Sequence[_Session]) -> None:
        for session in members:
            for step in session.steps:
                for name in step.wait_for:
                    if name not in self.places:
                        raise RecordError(
                            f"request {step.id!r} waits for {name!r}, which is not in the trace"
                        )


def _step(row: Row, line: int) -> _Step:
    prompt = row.input_tokens if row.input_length is None else row.input_length
    output = row.output_tokens if row.output_length is None else row.output_length
    if prompt is None or output is None:
        missing = "input_length" if prompt is None else "output_length"
        raise RecordError(f"{missing} is missing")
    if row.dependencies:
        raise RecordError("dependencies: Expected `wait_for`, the later form is not read")
    at = row.created_time if row.timestamp is None else row.timestamp
    delay = row.delay_ms if row.delay is None else row.delay
    longest = max(row.tool_events, key=lambda tool: tool.duration_ms, default=None)
    return _Step(
        id=row.request_id,
        line=line,
        prompt_tokens=prompt,
        output_tokens=output,
        wait_for=tuple(row.wait_for),
        delay_us=round((delay or 0) * 1000),
        tool_us=round((row.tool_wait_ms or 0) * 1000),
        tool=None if longest is None else longest.tool_class,
        at_us=None if at is None else round(at * 1000),
        shared_blocks=None,
    )


@dataclass(slots=True)
class _Builder:
    """One workflow, its sessions in order."""

    sessions: Sequence[_Session]
    places: dict[str, tuple[_Session, int]]
    prefixes: FirstPrompts
    block: int
    log: ReadLog

    def script(self) -> WorkflowScript:
        root = self.sessions[0]
        numbers = {session.name: number for number, session in enumerate(self.sessions)}
        for session in self.sessions[1:]:
            self._place(session)
        script = WorkflowScript(
            id=root.name,
            sessions=tuple(self._session(session, numbers) for session in self.sessions),
            agent_type=KIND,
            submitted_us=root.steps[0].at_us,
        )
        try:
            check_script(script)
        except ValueError as error:
            raise RecordError(str(error)) from None
        return script

    def _place(self, session: _Session) -> None:
        """After the last of its parent's requests that it waits for."""
        waits = (self.places[name] for name in session.steps[0].wait_for)
        session.spawn_step = max(index for other, index in waits if other is session.parent)

    def _session(self, session: _Session, numbers: dict[str, int]) -> SessionScript:
        parent, first = session.parent, session.steps[0]
        forked_tokens = 0 if parent is None else self._forked_tokens(session, parent)
        shared = [] if forked_tokens else self.prefixes.shared(session.first_ids)
        prefix_tokens = len(shared) * self.block
        kept = min(max(forked_tokens, prefix_tokens), first.prompt_tokens - 1)
        return SessionScript(
            steps=tuple(self._steps(session, kept)),
            prefix=f"{KIND}/{self.log.path.name}/{shared[-1]}" if shared else None,
            prefix_tokens=prefix_tokens,
            parent=None if parent is None else numbers[parent.name],
            spawn_step=session.spawn_step,
            delay_us=0 if parent is None else first.wait_us,
            forked_tokens=forked_tokens,
            blocking=parent is None or self._is_joined(session, parent),
        )

    def _forked_tokens(self, session: _Session, parent: _Session) -> int:
        first, spawning = session.steps[0], parent.steps[session.spawn_step]
        shared = (first.shared_blocks or 0) * self.block
        sizes = spawning.prompt_tokens, spawning.output_tokens
        return kept_tokens(shared, self.block, first.prompt_tokens, sizes) if shared else 0

    def _is_joined(self, session: _Session, parent: _Session) -> bool:
        """Whether the parent's next step waits for the end."""
        after = parent.steps[session.spawn_step + 1 : session.spawn_step + 2]
        return any(session.steps[-1].id in step.wait_for for step in after)

    def _steps(self, session: _Session, kept: int) -> Iterator[StepScript]:
        for index, step in enumerate(session.steps):
            if index:
                kept = self._kept_tokens(step, session.steps[index - 1])
            self._note_waits(session, index)
            if step.output_tokens == 0:
                self.log.note("steps without output, played with 1 token")
            after = session.steps[index + 1] if index + 1 < len(session.steps) else None
            yield StepScript(
                kept_tokens=kept,
                new_tokens=step.prompt_tokens - kept,
                output_tokens=max(step.output_tokens, 1),
                tool=None if after is None else after.tool,
                tool_us=0 if after is None else after.tool_us,
                gap_us=0 if after is None else after.wait_us,
            )

    def _kept_tokens(self, step: _Step, before: _Step) -> int:
        sizes = before.prompt_tokens, before.output_tokens
        if step.shared_blocks is not None:
            shared = min(step.shared_blocks, before.prompt_tokens // self.block)
            return kept_tokens(shared * self.block, self.block, step.prompt_tokens, sizes)
        kept = kept_if_growing(step.prompt_tokens, sizes)
        if kept is None:
            self.log.note(SHRUNK)
        return kept or 0

    def _note_waits(self, session: _Session, index: int) -> None:
        """What a script cannot say: it knows the step before, and sub-agents that it spawned."""
        step = session.steps[index]
        before = session.steps[index - 1].id if index else None
        if before is not None and before not in step.wait_for:
            self.log.note("steps that do not wait for the one before, played after it")
        for name in step.wait_for:
            other, place = self.places[name]
            is_join = other.parent is session and place == len(other.steps) - 1
            if is_join and other.spawn_step + 1 < index:
                self.log.note(
                    "sub-agents joined later than at the next step, played as not waited for"
                )
            is_spawn = index == 0 and other is session.parent and place == session.spawn_step
            if not (is_join or is_spawn or name == before):
                self.log.note("waits for other requests than these, left out")
