"""What to do. A closed union; every action carries its reason.

Hosts execute actions in the order given. None of them may fail silently: what an engine refuses
comes back as an event.
"""

from __future__ import annotations

from typing import Literal

from saga.core.record import record


@record
class Dispatch:
    """Send a request to an engine."""

    request: str
    engine: str
    reason: str
    priority: int = 0
    """Lower goes first inside the engine; equal ones in order of arrival there."""


RefusalCode = Literal["deadline_unreachable"]
"""What programs can tell refusals by. ``deadline_unreachable`` refuses the whole workflow."""


@record
class Reject:
    """Refuse a request; ``retry_after_us`` None means that trying again cannot help."""

    request: str
    reason: str
    retry_after_us: int | None = None
    code: RefusalCode | None = None


@record
class Cancel:
    """Stop a request on its engine; nobody waits for it any more."""

    request: str
    engine: str
    reason: str


@record
class Preempt:
    """Stop a running request for now; the engine resumes it behind the others it holds."""

    request: str
    engine: str
    reason: str


@record
class Retain:
    """Keep a session's idle KV on an engine until ``until``; ``score`` is its chance of reuse."""

    engine: str
    session: str
    until: int
    score: float
    reason: str


@record
class Release:
    """A session's KV on an engine will not be asked for again: it goes first."""

    engine: str
    session: str
    reason: str


@record
class Offload:
    """Copy a session's idle KV to the engine's host-memory tier and free it on the GPU."""

    engine: str
    session: str
    reason: str


@record
class Prefetch:
    """Have a session's KV ready on the engine before it is asked for."""

    engine: str
    session: str
    reason: str


@record
class Move:
    """Copy a session's KV to another engine; its request follows. Frees the source when done."""

    session: str
    source: str
    target: str
    reason: str


@record
class WakeAt:
    """Send a ``Tick`` at this time; only the earliest one outstanding matters."""

    at: int
    reason: str


Action = (
    Dispatch | Reject | Cancel | Preempt | Retain | Release | Offload | Prefetch | Move | WakeAt
)
