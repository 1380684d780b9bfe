"""Small helpers to drive a ``FakeCluster`` and to read what came of it."""

from collections.abc import Iterable
from typing import TypeVar

from saga.core import actions as act
from saga.core.model import RequestState, Session
from saga.core.scheduler import Scheduler
from saga.testing import FakeCluster, snapshot

A = TypeVar("A")
SECOND = 1_000_000


def only(actions: Iterable[act.Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def dispatched(actions: Iterable[act.Action]) -> list[tuple[str, str]]:
    return [(action.request, action.engine) for action in only(actions, act.Dispatch)]


def session(cluster: FakeCluster, name: str) -> Session:
    return cluster.scheduler.state.sessions[name]


def state_of(cluster: FakeCluster, request: str) -> RequestState:
    return cluster.scheduler.state.requests[request].state


def reason_of(cluster: FakeCluster, request: str) -> str:
    return cluster.scheduler.state.requests[request].reason


def everything(scheduler: Scheduler) -> object:
    """All that it knows, but for the actions of the last event."""
    known = {name: value for name, value in vars(scheduler).items() if name != "_actions"}
    return snapshot(known)


def step(cluster: FakeCluster, name: str, prompt_tokens: int, *, tool: str | None = None) -> None:
    """One request of the session, from its arrival to its end."""
    cluster.finish(cluster.ask(name, prompt_tokens), tool=tool)
