"""aiperf's ``dag_jsonl``: conversations of authored turns, which fork and spawn others.

One conversation per line. Turns hold text, not sizes: a token is taken to be four characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from saga.traces.base import Line, ReadLog, RecordError
from saga.traces.check import check_script
from saga.traces.records import Milliseconds, PromptTokens, decode
from saga.traces.reuse import kept_tokens
from saga.traces.script import SessionScript, StepScript, WorkflowScript
from saga.traces.text import CHARS_PER_TOKEN, SIZED_BY_TEXT, common_chars, tokens_of
from saga.traces.timeline import JOINED_LATER

KIND = "aiperf-dag"
ISOLATED = "message_array_with_responses"
MAX_SESSIONS = 10_000
"""Of one workflow: a conversation that is spawned again and again is a session each time."""


class Part(Struct):
    text: str = ""


class Message(Struct):
    role: str
    content: str | list[Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()

    @property
    def text(self) -> str:
        """Tool calls count as they are written."""
        said = self.content or ""
        if isinstance(said, list):
            said = "".join(part.text for part in said)
        return said + bytes(self.tool_calls).decode()


class Fork(Struct):
    child: str
    background: bool = False


class Spawn(Struct):
    children: Annotated[list[str], Meta(min_length=1)]
    join_at: int | None = None


class Turn(Struct):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: PromptTokens | None = None
    tools: msgspec.Raw = msgspec.Raw()
    extra: dict[str, Any] | None = None
    forks: list[str | Fork] = []
    spawns: list[str | Spawn] = []
    delay: Milliseconds = 0.0


class Conversation(Struct):
    session_id: str
    turns: list[Turn] = []
    orchestrator: bool = False
    context_mode: str | None = None
    pre_session_spawns: list[str] = []


_CONVERSATION = msgspec.json.Decoder(Conversation)


@dataclass(slots=True, frozen=True)
class _Branch:
    child: str
    turn: int
    forks: bool
    blocking: bool


@dataclass(slots=True, frozen=True)
class _Step:
    tokens: int
    """Of the turn's own messages."""
    output_tokens: int
    delay_us: int
    shared: int | None
    """Tokens that the messages of an isolated turn share with those of the turn before."""


@dataclass(slots=True)
class _Session:
    """A conversation without its text."""

    line: int
    steps: list[_Step] = field(default_factory=list)
    system: str | None = None
    """The name of its system prompt, the same for the same text."""
    system_tokens: int = 0
    branches: list[_Branch] = field(default_factory=list)


def read_dag(lines: Iterable[Line], log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
    """A workflow per conversation that no other one forks or spawns."""
    sessions: dict[str, _Session] = {}
    for line in lines:
        try:
            told = decode(line.text, _CONVERSATION)
            if told.session_id in sessions:
                earlier = sessions[told.session_id].line
                raise RecordError(f"session_id {told.session_id!r} was in line {earlier} already")
            sessions[told.session_id] = _session(told, line.number, log)
        except RecordError as error:
            log.problem(line.number, str(error))
    children = {branch.child for session in sessions.values() for branch in session.branches}
    reached: set[str] = set()
    for name, session in sessions.items():
        if name not in children:
            try:
                yield session.line, _workflow(name, sessions, reached)
            except RecordError as error:
                log.problem(session.line, str(error))
    for name, session in sessions.items():
        if name in children - reached:
            log.problem(session.line, f"session {name!r} is part of no workflow that was read")


def _session(told: Conversation, line: int, log: ReadLog) -> _Session:
    if told.orchestrator or not told.turns:
        raise RecordError("turns: a conversation without requests of its own is no session")
    session, isolated = _Session(line), told.context_mode == ISOLATED
    texts = ["".join(message.text for message in turn.messages) for turn in told.turns]
    for index, turn in enumerate(told.turns):
        log.note(SIZED_BY_TEXT)
        shared = None
        if isolated and index:
            shared = common_chars(texts[index], texts[index - 1]) // CHARS_PER_TOKEN
        tools = len(bytes(turn.tools)) if isolated or not index else 0
        session.steps.append(
            _Step(
                tokens=max(tokens_of(len(texts[index]) + tools), 1),
                output_tokens=_output_tokens(turn, log),
                delay_us=round(turn.delay * 1000),
                shared=shared,
            )
        )
        session.branches += _branches(turn, index, len(told.turns), log)
    first = told.turns[0].messages[0]
    if first.role == "system" and len(first.text) >= CHARS_PER_TOKEN:
        session.system = blake2b(first.text.encode("utf-8", "replace"), digest_size=8).hexdigest()
        session.system_tokens = len(first.text) // CHARS_PER_TOKEN
    for child in told.pre_session_spawns:
        log.note("sub-agents that began before a step of their parent had ended")
        session.branches.append(_Branch(child, 0, forks=False, blocking=False))
    return session


def _output_tokens(turn: Turn, log: ReadLog) -> int:
    if turn.max_tokens is None:
        log.note("outputs without max_tokens, played with 1 token")
        return 1
    if not (turn.extra or {}).get("ignore_eos"):
        log.note("outputs known only by max_tokens (upper bounds)")
    return turn.max_tokens


def _branches(turn: Turn, index: int, num_turns: int, log: ReadLog) -> Iterator[_Branch]:
    for fork in turn.forks:
        told = Fork(fork) if isinstance(fork, str) else fork
        if not told.background and index < num_turns - 1:
            raise RecordError(f"turns[{index}].forks: only a background fork leaves turns to play")
        yield _Branch(told.child, index, forks=True, blocking=False)
    for spawn in turn.spawns:
        group = Spawn([spawn]) if isinstance(spawn, str) else spawn
        joins = index + 1 if group.join_at is None else group.join_at
        if joins <= index or (group.join_at is not None and joins >= num_turns):
            raise RecordError(
                f"turns[{index}].spawns: join_at is {joins}: "
                f"Expected {index + 1} to {num_turns - 1}"
            )
        if index + 1 < joins < num_turns:
            log.note(JOINED_LATER)
        for child in group.children:
            yield _Branch(child, index, forks=False, blocking=index + 1 == joins < num_turns)


def _workflow(name: str, sessions: dict[str, _Session], reached: set[str]) -> WorkflowScript:
    """The conversation and all that follow from it, parents first."""
    made: list[SessionScript] = []
    waiting: list[tuple[tuple[str, ...], int | None, _Branch | None]] = [((name,), None, None)]
    for path, parent, branch in waiting:
        session = sessions[path[-1]]
        made.append(_script(session, made, parent, branch))
        reached.add(path[-1])
        for below in session.branches:
            if below.child not in sessions:
                raise RecordError(f"session {below.child!r} is not in the trace")
            if below.child in path:
                raise RecordError(f"session {below.child!r} is its own ancestor")
            waiting.append(((*path, below.child), len(made) - 1, below))
        if len(waiting) > MAX_SESSIONS:
            raise RecordError(f"more than {MAX_SESSIONS} sessions follow from {name!r}")
    script = WorkflowScript(id=name, sessions=tuple(made), agent_type=KIND)
    try:
        check_script(script)
    except ValueError as error:
        raise RecordError(str(error)) from None
    return script


def _script(
    session: _Session, made: Sequence[SessionScript], parent: int | None, branch: _Branch | None
) -> SessionScript:
    forked_tokens = 0
    if parent is not None and branch is not None and branch.forks:
        spawning = made[parent].steps[branch.turn]
        forked_tokens = spawning.prompt_tokens + spawning.output_tokens
    has_prefix = session.system is not None and not forked_tokens
    return SessionScript(
        steps=tuple(_steps(session, forked_tokens, session.system_tokens if has_prefix else 0)),
        prefix=f"system/{session.system}" if has_prefix else None,
        prefix_tokens=session.system_tokens if has_prefix else 0,
        parent=parent,
        spawn_step=0 if branch is None else branch.turn,
        delay_us=0 if branch is None else session.steps[0].delay_us,
        forked_tokens=forked_tokens,
        blocking=branch is None or branch.blocking,
    )


def _steps(session: _Session, forked_tokens: int, system_tokens: int) -> Iterator[StepScript]:
    """Turns are added to the context, unless each tells its whole prompt."""
    before: tuple[int, int] | None = None
    for index, step in enumerate(session.steps):
        if before is None:
            prompt = forked_tokens + step.tokens
            kept = forked_tokens or min(system_tokens, prompt - 1)
        elif step.shared is None:
            kept, prompt = sum(before), sum(before) + step.tokens
        else:
            prompt = step.tokens
            kept = kept_tokens(step.shared, 1, prompt, before)
        after = session.steps[index + 1 : index + 2]
        yield StepScript(
            kept_tokens=kept,
            new_tokens=prompt - kept,
            output_tokens=step.output_tokens,
            gap_us=sum(one.delay_us for one in after),
        )
        before = prompt, step.output_tokens
