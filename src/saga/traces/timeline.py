"""From calls with times to scripts, for every trace that tells when calls began and ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from saga.traces.base import ReadLog, RecordError, Times
from saga.traces.check import check_script
from saga.traces.reuse import kept_if_growing
from saga.traces.script import SessionScript, StepScript, WorkflowScript

JOINED_LATER = "sub-agents joined later than at the next step, played as not waited for"
SHRUNK = "prompts shorter than the context before, played as keeping nothing of it"


@dataclass(slots=True)
class Call:
    """A request that was served. Times are microseconds of the trace's clock."""

    prompt_tokens: int
    output_tokens: int
    start_us: int
    end_us: int
    tool: str | None = None
    tool_us: int = 0
    kept_tokens: int | None = None
    """None where the trace does not tell."""
    cached_tokens: int = 0
    """That were not computed: at least so many are kept."""
    returned_us: int | None = None
    """When its session asked again."""
    ready_us: int = 0
    """When nothing was waited for any more: its end, or that of sub-agents."""

    def __post_init__(self) -> None:
        self.ready_us = self.end_us


@dataclass(slots=True, eq=False)
class Track:
    """The calls of one session, in order."""

    parent: Track | None = None
    spawn_step: int = 0
    forked_tokens: int = 0
    prefix: str | None = None
    prefix_tokens: int = 0
    calls: list[Call] = field(default_factory=list)


def play_one_after_another(calls: Sequence[Call]) -> None:
    """Tell each call when its session asked again, unless it had not ended then."""
    for call, after in pairwise(calls):
        call.returned_us = after.start_us if after.start_us >= call.end_us else None


def script_of(
    tracks: Sequence[Track],
    log: ReadLog,
    *,
    id: str,
    agent_type: str,
    submitted_us: int,
    tenant: str = "default",
) -> WorkflowScript:
    """The workflow of these sessions, the root first and parents before children.

    When its calls began and ended goes into the log. Raises RecordError if it breaks a law.
    """
    used = [track for track in tracks if track.calls]
    numbers = {track: number for number, track in enumerate(used)}
    # Sub-agents first: they tell what their parents waited for.
    scripts = [_session_script(track, numbers, log) for track in reversed(used)]
    script = WorkflowScript(
        id=id,
        sessions=tuple(reversed(scripts)),
        tenant=tenant,
        agent_type=agent_type,
        submitted_us=submitted_us,
    )
    try:
        check_script(script)
    except ValueError as error:
        raise RecordError(str(error)) from None
    log.times.setdefault(id, times_of(used))  # of a name that comes again the first counts
    return script


def instant_times(script: WorkflowScript) -> Times:
    """The times of a workflow whose calls take none; a script does not say how long they took."""
    spawned: defaultdict[tuple[int | None, int], list[int]] = defaultdict(list)
    for number, session in enumerate(script.sessions):
        spawned[session.parent, session.spawn_step].append(number)
    offsets: list[list[int]] = [[] for _ in script.sessions]
    for number, session in reversed(list(enumerate(script.sessions))):
        now = 0
        for index, step in enumerate(session.steps):
            offsets[number].append(now)
            waits = (
                script.sessions[child].delay_us + offsets[child][-1]
                for child in spawned[number, index]
                if script.sessions[child].blocking
            )
            now += max(waits, default=0) + step.gap_us
    starts: list[int] = []
    for session in script.sessions:
        if session.parent is None:
            starts.append(script.submitted_us or 0)
        else:
            spawning = starts[session.parent] + offsets[session.parent][session.spawn_step]
            starts.append(spawning + session.delay_us)
    return tuple(
        tuple((start + offset, start + offset) for offset in own)
        for start, own in zip(starts, offsets, strict=True)
    )


def times_of(tracks: Sequence[Track]) -> Times:
    return tuple(tuple((call.start_us, call.end_us) for call in track.calls) for track in tracks)


def _session_script(track: Track, numbers: Mapping[Track, int], log: ReadLog) -> SessionScript:
    """A parent that asks again only after a sub-agent's end is taken to have waited for it."""
    steps = tuple(_step_scripts(track, log))
    session = SessionScript(steps=steps, prefix=track.prefix, prefix_tokens=track.prefix_tokens)
    if track.parent is None:
        return session
    spawning = track.parent.calls[track.spawn_step]
    end = track.calls[-1].end_us
    blocking = spawning.returned_us is not None and spawning.returned_us >= end
    if blocking:
        spawning.ready_us = max(spawning.ready_us, end)
    return replace(
        session,
        parent=numbers[track.parent],
        spawn_step=track.spawn_step,
        delay_us=max(track.calls[0].start_us - spawning.end_us, 0),
        forked_tokens=track.forked_tokens,
        blocking=blocking,
    )


def _step_scripts(track: Track, log: ReadLog) -> Iterator[StepScript]:
    before: Call | None = None
    for call in track.calls:
        if call.output_tokens == 0:
            log.note("steps without output, played with 1 token")
        kept = _kept_tokens(call, before, log)
        gap_us = 0 if call is track.calls[-1] else _gap_us(call, log)
        yield StepScript(
            kept_tokens=kept,
            new_tokens=call.prompt_tokens - kept,
            output_tokens=max(call.output_tokens, 1),
            tool=call.tool,
            tool_us=min(call.tool_us, gap_us),
            gap_us=gap_us,
        )
        before = call


def _kept_tokens(call: Call, before: Call | None, log: ReadLog) -> int:
    if call.kept_tokens is not None:
        return call.kept_tokens
    if before is None:
        return 0
    sizes = before.prompt_tokens, before.output_tokens
    kept = kept_if_growing(call.prompt_tokens, sizes)
    if kept is None:
        kept = min(call.cached_tokens, sum(sizes), call.prompt_tokens - 1)
        if not kept:
            log.note(SHRUNK)
    return kept


def _gap_us(call: Call, log: ReadLog) -> int:
    if call.returned_us is None:
        log.note("steps that overlap the next one of their session, played one after another")
        return 0
    return max(call.returned_us - call.ready_us, 0)
