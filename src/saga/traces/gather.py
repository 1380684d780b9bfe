"""Sessions put together from single calls and tools, whatever order a trace tells them in."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from saga.traces.base import ReadLog, RecordError
from saga.traces.blocks import FirstPrompts, shared_blocks
from saga.traces.reuse import kept_tokens
from saga.traces.script import WorkflowScript
from saga.traces.timeline import Call, Track, play_one_after_another, script_of

SCOPE = "\0"
"""Between what a session's name is told within, and the name."""


@dataclass(slots=True, frozen=True, order=True)
class ToolSpan:
    """Microseconds of the trace's clock."""

    start_us: int
    end_us: int
    name: str


@dataclass(slots=True, eq=False)
class Gathered:
    """A session as far as it was read."""

    key: str
    line: int
    workflow: str | None = None
    parent: str | None = None
    agent_type: str | None = None
    calls: list[Call] = field(default_factory=list)
    tools: list[ToolSpan] = field(default_factory=list)
    forked_tokens: int = 0
    """Of the first prompt as it was read."""
    first_blocks: Sequence[int] = ()
    """The whole blocks of that prompt, where it was not forked."""
    last_blocks: Sequence[int] | None = None
    """Of the call read last; None where it does not tell."""

    def begin(self, call: Call, ids: Sequence[int], parent: Gathered | None, block: int) -> None:
        """What the first prompt begins with. ``ids`` are its whole blocks."""
        shared = 0
        if parent is not None and parent.calls and parent.last_blocks:
            shared = shared_blocks(ids, parent.last_blocks) * block
        if parent is not None and shared:
            self.forked_tokens = kept_tokens(shared, block, call.prompt_tokens, parent.last_sizes)
        else:
            self.first_blocks = ids

    def go_on(self, call: Call, ids: Sequence[int], block: int) -> None:
        """What a later prompt takes from the call read before it, if both tell their blocks."""
        if self.last_blocks is not None:
            shared = shared_blocks(ids, self.last_blocks) * block
            call.kept_tokens = kept_tokens(shared, block, call.prompt_tokens, self.last_sizes)

    @property
    def last_sizes(self) -> tuple[int, int]:
        return self.calls[-1].prompt_tokens, self.calls[-1].output_tokens

    @property
    def start_us(self) -> int:
        return self.calls[0].start_us


class Gatherer:
    """Memory is bounded by the calls and tools: a few numbers for each."""

    def __init__(self, log: ReadLog, kind: str) -> None:
        self.log = log
        self.kind = kind
        self.sessions: dict[str, Gathered] = {}

    def session(self, key: str, line: int) -> Gathered:
        return self.sessions.setdefault(key, Gathered(key, line))

    def workflows(self, block_tokens: int = 1) -> Iterator[tuple[int, WorkflowScript]]:
        """No call follows. The workflows in the order of their first lines."""
        for session in self.sessions.values():
            self._finish(session)
        groups, prefixes = self._groups(), FirstPrompts()
        for members in groups.values():
            for session in members:
                prefixes.add(session.first_blocks)
        for name, members in sorted(groups.items(), key=lambda item: min(s.line for s in item[1])):
            first = min(member.line for member in members)
            told = (member.agent_type for member in members if member.agent_type is not None)
            try:
                tracks = self._tracks(members, prefixes, block_tokens)
                script = script_of(
                    tracks,
                    self.log,
                    id=name,
                    agent_type=next(told, self.kind),
                    submitted_us=tracks[0].calls[0].start_us,
                )
            except RecordError as error:
                self.log.problem(first, str(error))
                continue
            yield first, script

    def _groups(self) -> dict[str, list[Gathered]]:
        """The sessions with calls, by workflow."""
        groups: defaultdict[str, list[Gathered]] = defaultdict(list)
        for session in self.sessions.values():
            if not session.calls:
                continue
            try:
                name = session.workflow
                groups[self._root(session).key if name is None else name].append(session)
            except RecordError as error:
                self.log.problem(session.line, str(error))
                continue
            if session.parent is not None and self._parent(session) is None:
                self.log.note("sessions whose parent is not in the trace")
        return groups

    def _finish(self, session: Gathered) -> None:
        """Calls in their order, with their tools and the return after each."""
        ordered = sorted(session.calls, key=lambda call: (call.start_us, call.end_us))
        if ordered != session.calls:
            for call in ordered:
                call.kept_tokens = None
            session.calls, session.forked_tokens, session.first_blocks = ordered, 0, ()
        play_one_after_another(session.calls)
        starts = [call.start_us for call in session.calls]
        by_call: defaultdict[int, list[ToolSpan]] = defaultdict(list)
        for tool in sorted(session.tools):
            index = bisect_right(starts, tool.start_us) - 1
            if index < 0:
                self.log.note("tools before the first step of their session, left out")
            else:
                by_call[index].append(tool)
        for index, tools in by_call.items():
            self._use(session.calls[index], tools)

    def _use(self, call: Call, tools: Sequence[ToolSpan]) -> None:
        if len({tool.name for tool in tools}) > 1:
            self.log.note("steps with several tools, named by the longest")
        call.tool = max(tools, key=lambda tool: tool.end_us - tool.start_us).name
        call.tool_us = covered_us((tool.start_us, tool.end_us) for tool in tools)

    def _parent(self, session: Gathered) -> Gathered | None:
        """The nearest session above that has calls."""
        seen = {session.key}
        above = self.sessions.get(session.parent) if session.parent is not None else None
        while above is not None and not above.calls:
            if above.key in seen or above.parent is None:
                return None
            seen.add(above.key)
            above = self.sessions.get(above.parent)
        return above if above is not session else None

    def _root(self, session: Gathered) -> Gathered:
        seen = {session.key}
        root = session
        while (above := self._parent(root)) is not None:
            if above.key in seen:
                raise RecordError(f"session {_shown(session.key)!r} is its own ancestor")
            seen.add(above.key)
            root = above
        return root

    def _tracks(
        self, members: Sequence[Gathered], prefixes: FirstPrompts, block_tokens: int
    ) -> list[Track]:
        """Parents before children; sessions without a parent are the first one's."""
        members = sorted(members, key=lambda session: (session.start_us, session.line))
        parents = {session.key: self._parent(session) for session in members}
        top = [s for s in members if (p := parents[s.key]) is None or p.key not in parents]
        root = next(iter(top), None)
        if root is None:
            raise RecordError(f"session {_shown(members[0].key)!r} is its own ancestor")
        for session in top[1:]:
            self.log.note("sessions without a parent, played as sub-agents of the first one")
            parents[session.key] = root
        children: defaultdict[str, list[Gathered]] = defaultdict(list)
        for session in members:
            parent = parents[session.key]
            if session is not root and parent is not None:
                children[parent.key].append(session)
        tracks: list[Track] = []
        waiting: list[tuple[Gathered, Track | None]] = [(root, None)]
        for session, parent_track in waiting:
            track = self._track(session, parent_track, prefixes, block_tokens)
            tracks.append(track)
            waiting += [(child, track) for child in children[session.key]]
        if len(tracks) < len(members):
            raise RecordError(f"sessions beside {_shown(root.key)!r} are their own ancestors")
        return tracks

    def _track(
        self, session: Gathered, parent: Track | None, prefixes: FirstPrompts, block_tokens: int
    ) -> Track:
        track = Track(parent, calls=session.calls)
        first = session.calls[0]
        if parent is not None:
            ended = (n for n, call in enumerate(parent.calls) if call.end_us <= first.start_us)
            track.spawn_step = max(ended, default=0)
            spawning = parent.calls[track.spawn_step]
            if spawning.end_us > first.start_us:
                self.log.note("sub-agents that began before a step of their parent had ended")
            context = spawning.prompt_tokens + spawning.output_tokens
            track.forked_tokens = min(session.forked_tokens, context, first.prompt_tokens - 1)
        if not track.forked_tokens and (shared := prefixes.shared(session.first_blocks)):
            track.prefix = f"{self.kind}/{self.log.path.name}/{shared[-1]}"
            track.prefix_tokens = len(shared) * block_tokens
        kept = max(track.forked_tokens, track.prefix_tokens)
        first.kept_tokens = min(kept, first.prompt_tokens - 1)
        return track


def _shown(key: str) -> str:
    return key.rpartition(SCOPE)[2]


def covered_us(spans: Iterable[tuple[int, int]]) -> int:
    """How long at least one of the spans lasts."""
    total, until = 0, 0
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0)
        until = max(until, end)
    return total
