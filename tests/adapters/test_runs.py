"""What the hooks of all frameworks have in common."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from saga.adapters import identified
from saga.adapters.announce import Announcer
from saga.adapters.identity import Answered, Identity, current_step
from saga.adapters.runs import Kept, Runs

GATEWAY = Answered("http://gateway", (), "told")


class Heard(Announcer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str | None, str, dict[str, Any]]] = []

    def tell(
        self, answered: Answered | None, workflow: str | None, kind: str, /, **what: Any
    ) -> None:
        if answered is not None:
            self.events.append((workflow, kind, what))


def step(runs: Runs[str], key: str, identity: Identity, *, answered: bool = True) -> Identity:
    """One request; the identity it was sent with."""
    runs.begin(key, identity.session, identity)
    one = current_step()
    assert one is not None
    if answered:
        one.answered = GATEWAY
    runs.end(key)
    return one.identity


def test_steps_and_tools_are_announced_once_a_gateway_answered() -> None:
    heard = Heard()
    runs: Runs[str] = Runs(heard)
    plan = Identity(workflow="w", session="s", step="plan")
    for key in "ab":
        step(runs, key, plan)
    runs.begin_tool("t", "s", "bash")
    runs.end_tool("t")
    runs.finish("w")
    runs.finish("w")
    assert heard.events == [
        ("w", "step.end", {"session": "told", "step": "plan"}),
        ("w", "tool.start", {"session": "told", "tool": "bash"}),
        ("w", "tool.end", {"session": "told", "tool": "bash"}),
        ("w", "final", {}),
    ]
    assert current_step() is None


def test_nothing_is_announced_where_no_gateway_is() -> None:
    heard = Heard()
    runs: Runs[str] = Runs(heard)
    step(runs, "a", Identity(workflow="w", session="s", step="x"), answered=False)
    runs.begin_tool("t", "s", "bash")
    runs.end_tool("t")
    runs.finish("w")
    assert heard.events == []


def test_ends_without_a_beginning_are_nothing() -> None:
    runs: Runs[str] = Runs(Heard())
    runs.end("a")
    runs.end_tool("a")
    runs.begin_tool("a", "nowhere", "bash")
    runs.finish("w")
    assert runs.session("nowhere") is None


def test_what_a_tool_asks_belongs_to_the_workflow_of_the_tool() -> None:
    outer: Runs[str] = Runs(Heard())
    inner: Runs[str] = Runs(Heard())
    step(outer, "a", Identity(workflow="w", session="lead"))
    outer.begin_tool("t", "lead", "ask_expert")
    sent = step(inner, "b", Identity(workflow="crew", session="expert"))
    assert sent == Identity(workflow="w", session="expert", parent="lead")
    own = step(inner, "c", Identity(workflow="crew", session="expert", parent="x"))
    assert (own.workflow, own.parent) == ("crew", "x")
    same = step(outer, "d", Identity(workflow="w", session="lead"))
    assert same.parent is None
    outer.end_tool("t")
    after = step(inner, "e", Identity(workflow="crew", session="expert"))
    assert after == Identity(workflow="crew", session="expert")


def test_a_tool_inside_of_a_tool_ends_before_it() -> None:
    runs: Runs[str] = Runs(Heard())
    step(runs, "a", Identity(workflow="w", session="lead"))
    runs.begin_tool("t", "lead", "ask_expert")
    for key in "bcd":
        sent = step(runs, key, Identity(workflow="crew", session="expert"))
        assert (sent.workflow, sent.parent) == ("w", "lead")
        runs.begin_tool("u", "expert", "bash")
        inner = step(runs, "x", Identity(workflow="y", session="z"))
        assert (inner.workflow, inner.parent) == ("w", "expert")
        runs.end_tool("u")
    runs.end_tool("t")
    assert step(runs, "e", Identity(workflow="crew", session="expert")).parent is None


def test_a_part_of_a_workflow_does_not_end_it() -> None:
    heard = Heard()
    runs: Runs[str] = Runs(heard)
    step(runs, "a", Identity(workflow="w", session="lead"))
    runs.begin_tool("t", "lead", "ask_expert")
    step(runs, "b", Identity(workflow="crew", session="expert"))
    runs.finish("crew")
    runs.end_tool("t")
    with identified(workflow="ticket"):
        step(runs, "c", Identity(workflow="thread", session="s"))
    runs.finish("thread")
    assert "final" not in [kind for _, kind, _ in heard.events]
    runs.finish("w")
    assert heard.events[-1][:2] == ("w", "final")


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_what_is_kept_is_bounded_and_the_latest(steps: list[tuple[int, bool]]) -> None:
    kept: Kept[int, int] = Kept(4)
    model: dict[int, int] = {}
    for number, (key, put) in enumerate(steps):
        if put:
            model.pop(key, None)
            model[key] = number
            kept.put(key, number)
            while len(model) > 4:
                del model[next(iter(model))]
        else:
            assert kept.pop(key) == model.pop(key, None)
        assert len(kept) == len(model)
        assert {key: kept.get(key) for key in model} == model
