"""Mooncake traces: one request per line with the hash ids of its prompt's 512-token blocks.

An id names a block together with all that comes before it. The trace names no sessions, they are
inferred: a request continues the session that was the first to use the longest part of its chain of
blocks, if it begins with all full blocks of that session's last prompt and has room for its output.
Any other request begins a session of its own, whose declared prefix is the longest chain of full
blocks that another session begins with too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
from msgspec import Struct

from saga.traces.base import Line, ReadLog, RecordError
from saga.traces.records import Milliseconds, PromptTokens, Tokens, decode
from saga.traces.script import SessionScript, StepScript, WorkflowScript

BLOCK_TOKENS = 512


class Request(Struct, rename={"at": "ts_ms", "prompt": "in", "output": "out"}):
    at: Milliseconds
    prompt: PromptTokens
    output: Tokens
    hash_ids: list[int]

    @property
    def at_us(self) -> int:
        return round(self.at * 1000)

    @property
    def full_blocks(self) -> list[int]:
        return self.hash_ids[: self.prompt // BLOCK_TOKENS]


class PublishedRequest(
    Request, rename={"at": "timestamp", "prompt": "input_length", "output": "output_length"}
):
    """The same under the field names of the published files."""

    at: Milliseconds
    prompt: PromptTokens
    output: Tokens


@dataclass(slots=True, eq=False)
class _Session:
    line: int
    requests: list[Request] = field(default_factory=list)

    def goes_on_with(self, request: Request) -> bool:
        last = self.requests[-1]
        end = len(last.full_blocks)
        return (
            end > 0
            and request.prompt >= last.prompt + last.output
            and request.hash_ids[end - 1 : end] == last.full_blocks[-1:]
        )


def read_mooncake(
    lines: Iterable[Line], log: ReadLog, *, published: bool
) -> Iterator[tuple[int, WorkflowScript]]:
    """One workflow of one session per inferred conversation. O(blocks)."""
    requests = _requests(lines, log, PublishedRequest if published else Request)
    sessions = _infer_sessions(requests)
    begun = Counter(block for session in sessions for block in session.requests[0].full_blocks)
    for session in sessions:
        yield session.line, _workflow(session, begun, log)


def _requests(
    lines: Iterable[Line], log: ReadLog, form: type[Request]
) -> Iterator[tuple[int, Request]]:
    decoder = msgspec.json.Decoder(form)
    now = 0.0
    for line in lines:
        try:
            request = decode(line.text, decoder)
            _check(request, now)
        except RecordError as error:
            log.problem(line.number, str(error))
            continue
        now = request.at
        yield line.number, request


def _check(request: Request, now: float) -> None:
    if request.at < now:
        raise RecordError(f"time is {request.at} ms, before the previous {now} ms")
    full, partial = divmod(request.prompt, BLOCK_TOKENS)
    if not full <= len(request.hash_ids) <= full + bool(partial):
        raise RecordError(
            f"{len(request.hash_ids)} hash_ids, {request.prompt} tokens have {full} full blocks"
        )


def _infer_sessions(requests: Iterable[tuple[int, Request]]) -> list[_Session]:
    sessions: list[_Session] = []
    first_user: dict[int, _Session] = {}
    for line, request in requests:
        known = (first_user[block] for block in reversed(request.hash_ids) if block in first_user)
        session = next((one for one in known if one.goes_on_with(request)), None)
        if session is None:
            session = _Session(line)
            sessions.append(session)
        for block in request.hash_ids:
            first_user.setdefault(block, session)
        session.requests.append(request)
    return sessions


def _workflow(session: _Session, begun: Counter[int], log: ReadLog) -> WorkflowScript:
    first = session.requests[0]
    shared = [block for block in first.full_blocks if begun[block] > 1]
    prefix_tokens = min(len(shared) * BLOCK_TOKENS, first.prompt - 1)
    kept = [prefix_tokens, *(one.prompt + one.output for one in session.requests)]
    gaps = [*(b.at_us - a.at_us for a, b in pairwise(session.requests)), 0]
    script = SessionScript(
        steps=tuple(map(_step, session.requests, kept, gaps)),
        prefix=f"mooncake/{log.path.name}/{shared[-1]}" if shared else None,
        prefix_tokens=prefix_tokens,
    )
    for _ in session.requests[1:]:
        log.note("gaps known only with an LLM call inside them (upper bounds)")
    return WorkflowScript(
        id=f"mooncake-{session.line}",
        sessions=(script,),
        agent_type="mooncake",
        submitted_us=first.at_us,
    )


def _step(request: Request, kept: int, gap_us: int) -> StepScript:
    kept = min(kept, request.prompt - 1)
    return StepScript(
        kept_tokens=kept,
        new_tokens=request.prompt - kept,
        output_tokens=max(request.output, 1),
        gap_us=gap_us,
    )
