"""Reads what each family of ``saga.gateway.sources`` says out of a request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple, TypeVar

from saga.gateway.body import Fields, Scalar
from saga.gateway.locations import (
    DECODED,
    HEADERS,
    Condition,
    Reader,
    Request,
    condition,
    count,
    flag,
    identifier,
    priority,
    reader,
)
from saga.gateway.sources import Family

T = TypeVar("T")


class Claim(NamedTuple):
    """What one family says. Without a session it annotates another's claim."""

    family: Family
    session: str | None
    workflow: str | None = None
    parent: str | None = None
    hint: str | None = None
    agent_type: str | None = None
    final: bool = False
    deadline_us: int | None = None
    priority: float | None = None
    compaction: bool = False

    def annotated(self, note: Claim) -> Claim:
        """The claim with what an earlier family says beside the session."""
        return self._replace(
            workflow=note.workflow or self.workflow,
            agent_type=note.agent_type or self.agent_type,
            final=note.final or self.final,
            deadline_us=self.deadline_us if note.deadline_us is None else note.deadline_us,
            priority=note.priority or self.priority,
        )


class Finder:
    """Reads what a family says out of a request."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._annotates = family.annotates
        self._session = _readers(family.session)
        self._pattern = re.compile(family.pattern) if family.pattern else None
        self._agent = _readers(family.agent)
        self._parent_agent = _readers(family.parent_agent)
        self._workflow = _readers(family.workflow)
        self._hint = _readers(family.hint)
        self._parent = _readers(family.parent)
        self._agent_type = _readers(family.agent_type)
        self._final = _readers(family.final)
        self._deadline_ms = _readers(family.deadline_ms)
        self._priority = _readers(family.priority)
        self._compaction = _conditions(family.compaction)
        self._when = _conditions(family.when)
        self._tells_no_more = not any(
            (family.annotates, family.agent, family.workflow, family.hint, family.agent_type,
             family.final, family.deadline_ms, family.priority, family.compaction)
        )  # fmt: skip
        """Than a session and its parent."""
        self.places = _places(family)

    def find(self, request: Request) -> Claim | None:
        """None if the family says nothing of the request."""
        if self._when and not any(holds(request) for holds in self._when):
            return None
        session = _read(self._session, request, identifier)
        if session is None and not self._annotates:
            return None
        if session is not None and self._pattern is not None:
            found = self._pattern.fullmatch(session)
            session = None if found is None else identifier(found[1])
            if session is None:
                return None
        if self._tells_no_more:
            parent = _read(self._parent, request, identifier)
            return Claim(self.family, session, parent=parent)
        agent = _read(self._agent, request, identifier) if session is not None else None
        workflow = _read(self._workflow, request, identifier)
        parent = _read(self._parent, request, identifier)
        if session is not None and agent is not None and (agent := agent.rstrip("/")):
            above = _read(self._parent_agent, request, identifier) or _above(agent)
            parent = parent or identifier(f"{session}:{above}" if above else session)
            workflow = workflow or session
            session = identifier(f"{session}:{agent}")
            if session is None:
                return None
        deadline_ms = _read(self._deadline_ms, request, count)
        return Claim(
            family=self.family,
            session=session,
            workflow=workflow,
            parent=parent,
            hint=self.hint(request),
            agent_type=_read(self._agent_type, request, identifier),
            final=bool(_read(self._final, request, flag)),
            deadline_us=None if deadline_ms is None else deadline_ms * 1_000,
            priority=_read(self._priority, request, priority),
            compaction=any(holds(request) for holds in self._compaction),
        )

    def hint(self, request: Request) -> str | None:
        return _read(self._hint, request, identifier)


class Finders:
    """Finders in the order of their precedence."""

    def __init__(self, finders: Iterable[Finder]) -> None:
        self._finders = tuple(finders)
        self._always: set[int] = set()
        """Numbers of those that look in places beside these two."""
        self._by_header: dict[str, set[int]] = {}
        by_field: dict[str, set[int]] = {}
        for number, finder in enumerate(self._finders):
            if finder.places.elsewhere:
                self._always.add(number)
            for name in finder.places.headers:
                self._by_header.setdefault(name, set()).add(number)
            for name in finder.places.fields:
                by_field.setdefault(name, set()).add(number)
        self._fields = _values(tuple(by_field))
        self._of_fields = tuple(by_field.values())

    def that_may_find(self, request: Request) -> list[Finder]:
        """Those to which something is said at all: few."""
        numbers = set(self._always)
        for name in self._by_header.keys() & request.headers.keys():
            numbers |= self._by_header[name]
        values = self._fields(request.fields)
        if any(values):
            for value, some in zip(values, self._of_fields, strict=True):
                if value:
                    numbers |= some
        return [self._finders[number] for number in sorted(numbers)]


def _values(names: tuple[str, ...]) -> Callable[[Fields], tuple[object, ...]]:
    """What gets these fields; one call, as it is made for every request."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda fields: tuple(getattr(fields, name) for name in names)


def _above(agent: str) -> str:
    """The parent of an agent that is written as a path."""
    return agent.rpartition("/")[0] if agent.startswith("/") else ""


class Places(NamedTuple):
    """Where a family says what makes it count."""

    headers: frozenset[str]
    fields: frozenset[str]
    """Of the body."""
    elsewhere: bool
    """Whether it may say so in further places."""


def _places(family: Family) -> Places:
    told = family.session
    if family.annotates:
        told += family.workflow + family.agent_type + family.final
        told += family.deadline_ms + family.priority
    headers, fields, elsewhere = set(), set(), False
    for location in told:
        kind, _, path = location.partition(":")
        name = path.partition(".")[0]
        if kind in HEADERS:
            headers.add(HEADERS[kind] or name.lower())
        elif kind == "body" and name in DECODED:
            fields.add(name)
        else:
            elsewhere = True
    return Places(frozenset(headers), frozenset(fields), elsewhere)


def _readers(locations: Sequence[str]) -> tuple[Reader, ...]:
    return tuple(reader(location) for location in locations)


def _conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    return tuple(condition(text) for text in texts)


def _read(
    readers: Sequence[Reader], request: Request, convert: Callable[[Scalar], T | None]
) -> T | None:
    """The first value that can be converted."""
    for read in readers:
        value = read(request)
        if value is not None and (converted := convert(value)) is not None:
            return converted
    return None
