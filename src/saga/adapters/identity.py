"""Whose step the code that runs is: told by the application, or by a hook into its framework."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import quote

from saga import wire

MAX_VALUE: Final = 256
"""Characters of a header's value: the gateway reads no longer ids."""
_READABLE: Final = 200
_SAFE: Final = " !#$&'()*+,-./:;<=>?@[]^_`{|}"
_HEADERS: Final = (
    ("workflow", wire.WORKFLOW_HEADER),
    ("session", wire.SESSION_HEADER),
    ("parent", wire.PARENT_HEADER),
    ("agent", wire.AGENT_HEADER),
    ("step", wire.STEP_HEADER),
    ("next_tool", wire.NEXT_TOOL_HEADER),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What is known of a step. None: not told; the gateway finds sessions without a name itself."""

    workflow: str | None = None
    """The whole task."""
    session: str | None = None
    """One chain of requests that continue each other."""
    parent: str | None = None
    """The session that this one works for."""
    agent: str | None = None
    """The kind of agent: its steps and return times are learned together."""
    step: str | None = None
    """The place in the program: a node, a task."""
    next_tool: str | None = None
    """What will be called after the answer, whatever that says."""
    final: bool = False
    """No further request of the session will come."""

    def under(self, told: Identity) -> Identity:
        """The identity with what is told elsewhere in front of its own."""
        names = [field.name for field in fields(told)]
        return replace(self, **{name: value for name in names if (value := getattr(told, name))})

    def headers(self) -> dict[str, str]:
        """By lower-case name, all of them ASCII."""
        named = {header: text(getattr(self, name)) for name, header in _HEADERS}
        headers = {header: value for header, value in named.items() if value}
        if self.final:
            headers[wire.FINAL_HEADER] = "true"
        return headers


class Step:
    """One request to be, and the gateway that answered it, if one did."""

    __slots__ = ("answered", "identity")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.answered: Answered | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A gateway of SAGA answered a step."""

    url: str
    """Of the gateway, without ``/v1``."""
    credentials: tuple[tuple[str, str], ...]
    """The headers with which the application was let in."""
    session: str
    """As the gateway names it."""

    def __repr__(self) -> str:
        return f"Answered({self.url!r}, session={self.session!r})"  # no keys in anybody's logs


_NOTHING: Final = Identity()
_told: ContextVar[Identity] = ContextVar("saga_told", default=_NOTHING)
_step: ContextVar[Step | None] = ContextVar("saga_step", default=None)


@contextmanager
def identified(**told: Any) -> Iterator[Identity]:
    """Requests inside belong to this workflow, session, agent ... (the fields of ``Identity``).

    What is told here is used before what a hook finds, and inside of another ``identified`` before
    what that one told.
    """
    identity = _told.get().under(Identity(**told))
    token = _told.set(identity)
    try:
        yield identity
    finally:
        _told.reset(token)


def current_step() -> Step | None:
    """The step of the code that runs; None if nothing is known of it."""
    step, told = _step.get(), _told.get()
    if told == _NOTHING:
        return step
    if step is None:
        return Step(told)
    step.identity = step.identity.under(told)
    return step


def begin_step(identity: Identity) -> tuple[Step, Step | None]:
    """The step that requests of this context belong to from now on, and the one before."""
    before, step = _step.get(), Step(identity)
    _step.set(step)
    return step, before


def end_step(before: Step | None) -> None:
    """Back to the step before, also from another context than ``begin_step`` was called in."""
    _step.set(before)


def text(value: object) -> str:
    """As it stands in a header or an announcement: printable ASCII, ``MAX_VALUE`` at most.

    Most ids are that and stay as they are. Others become readable and remain apart by a digest.
    """
    plain = "" if value is None else str(value)
    bare = plain.isascii() and plain.isprintable() and plain == plain.strip()
    if bare and len(plain) <= MAX_VALUE:
        return plain
    begin = plain[:_READABLE].encode(errors="replace")
    readable = quote(begin, safe=_SAFE)[:_READABLE].lstrip()
    data = plain.encode(errors="surrogatepass")
    return f"{readable}~{blake2b(data, digest_size=8).hexdigest()}"
