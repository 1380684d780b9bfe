"""The latest decisions, each with its reason: what ``/v1/saga/decisions`` shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from saga.core import actions as act
from saga.core import events as ev
from saga.core.scheduler import Scheduler

LENGTH = 20_000


class Journal:
    """Remembers actions; bounded. Wake-ups are no decisions."""

    def __init__(self, length: int = LENGTH) -> None:
        self._entries: deque[tuple[int, str, act.Action]] = deque(maxlen=length)
        """Time, session (empty: none), action."""

    def note(self, event: ev.Event, actions: list[act.Action], scheduler: Scheduler) -> None:
        for action in actions:
            if isinstance(action, act.WakeAt):
                continue
            self._entries.append((event.at, _session_of(action, event, scheduler), action))

    def entries(
        self, *, tenant: str | None, session: str | None, limit: int
    ) -> Iterator[dict[str, Any]]:
        """The newest first. ``tenant`` None: everybody's; ``session`` is a scoped id."""
        for at, name, action in reversed(self._entries):
            if limit <= 0:
                return
            if tenant is not None and not name.startswith(f"{tenant}/"):
                continue
            if session is not None and name != session:
                continue
            limit -= 1
            told = {field: getattr(action, field) for field in action.__dataclass_fields__}
            yield {"at_us": at, "action": type(action).__name__, **told, "session": name}


def _session_of(action: act.Action, event: ev.Event, scheduler: Scheduler) -> str:
    """Of the action's own request: an event of one session may make room for another's."""
    if isinstance(action, (act.Retain, act.Release, act.Offload, act.Prefetch, act.Move)):
        return action.session
    request = getattr(action, "request", "")
    known = scheduler.state.requests.get(request)
    if known is not None:
        return known.session.id
    if isinstance(event, ev.RequestArrived) and event.request == request:  # refused at once
        return event.session
    return ""
