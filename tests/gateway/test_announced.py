"""``POST /v1/saga/workflows/{id}/events``: what clients announce between requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.keyring import keyed
from tests.gateway.live import Live, ask, chat, gateway
from tests.gateway.test_control import CHAT, control
from tests.serving import wait_until

from saga.core import actions as act
from saga.core import events as ev
from saga.gateway.announced import MAX_EVENTS

Told = list[ev.Event]


@pytest.fixture(scope="module")
def seen() -> Iterator[tuple[Live, Told]]:
    told: Told = []

    def observe(event: ev.Event, actions: list[act.Action]) -> None:
        told.append(event)

    with gateway(engines=1, engine_options={"speed": 500.0}, observe=observe) as live:
        yield live, told
        live.check_nothing_is_lost()


def step(live: Live, workflow: str, session: str = "main", **more: Any) -> None:
    headers = {"x-saga-workflow-id": workflow, "x-saga-session-id": session}
    assert ask(live.url + CHAT, chat(f"{workflow} {session}", **more), headers=headers)[0] == 200


def announce(live: Live, workflow: str, *events: Any) -> tuple[int, Any]:
    return control(live, f"workflows/{workflow}/events", {"events": list(events)})


def session_of(live: Live, workflow: str, session: str = "main") -> dict[str, Any]:
    sessions: list[dict[str, Any]] = control(live, f"workflows/{workflow}")[1]["sessions"]
    (one,) = (told for told in sessions if told["id"] == session)
    return one


def tools(told: Told, session: str) -> list[ev.Event]:
    kinds = (ev.ToolStarted, ev.ToolFinished)
    return [event for event in told if isinstance(event, kinds) and event.session == session]


def test_a_tool_that_no_answer_named_is_known(seen: tuple[Live, Told]) -> None:
    live, told = seen
    step(live, "a")
    assert session_of(live, "a")["tool"] is None
    start = {"type": "tool.start", "session": "main", "tool": "bash"}
    assert announce(live, "a", start) == (200, {"ignored": 0})
    assert session_of(live, "a")["tool"] == "bash"
    known = live.gateway.host.scheduler.state.sessions["default/main"]
    assert known.tool == "bash"
    assert announce(live, "a", {"type": "tool.end", "session": "main"}) == (200, {"ignored": 0})
    started, finished = tools(told, "default/main")
    assert isinstance(started, ev.ToolStarted)
    assert started.tool == "bash"
    assert isinstance(finished, ev.ToolFinished)
    assert started.at <= finished.at
    announce(live, "a", {"type": "final"})


def test_a_second_tool_is_not_what_the_session_waits_for(seen: tuple[Live, Told]) -> None:
    live, _ = seen
    step(live, "b")
    starts = [{"type": "tool.start", "session": "main", "tool": name} for name in ("x", "y", "x")]
    assert announce(live, "b", *starts) == (200, {"ignored": 1})
    assert session_of(live, "b")["tool"] == "x"
    announce(live, "b", {"type": "final"})


def test_the_place_in_the_program_is_told(seen: tuple[Live, Told]) -> None:
    live, _ = seen
    step(live, "c")
    assert session_of(live, "c")["step"] is None
    events = [
        {"type": "step.start", "session": "main", "step": "plan"},
        {"type": "step.end", "session": "main"},
        {"type": "step.end", "session": "main", "step": "act\n"},
        {"type": "step.end", "session": "main", "step": "\n"},
    ]
    assert announce(live, "c", *events) == (200, {"ignored": 0})
    assert session_of(live, "c")["step"] == "act"
    announce(live, "c", {"type": "final"})


def test_the_end_of_a_session_and_of_a_workflow(seen: tuple[Live, Told]) -> None:
    live, told = seen
    step(live, "d")
    step(live, "d", "helper")
    end = {"type": "final", "session": "helper"}
    assert announce(live, "d", end, end) == (200, {"ignored": 1})
    assert [one["id"] for one in control(live, "workflows/d")[1]["sessions"]] == ["main"]
    assert announce(live, "d", {"type": "final"}) == (200, {"ignored": 0})
    assert control(live, "workflows/d")[0] == 404
    assert announce(live, "d", {"type": "final"})[0] == 404
    assert [event.workflow for event in told if isinstance(event, ev.WorkflowDone)][-1] == (
        "default/d"
    )


def test_what_is_under_way_is_not_cancelled() -> None:
    with gateway(engines=1, engine_options={"speed": 20.0}) as live:
        done: list[int] = []

        def slow() -> None:
            headers = {"x-saga-workflow-id": "slow", "x-saga-session-id": "main"}
            asked = chat("x", max_tokens=400, saga_emulate={"output_tokens": 400, "tool": None})
            done.append(ask(live.url + CHAT, asked, headers=headers)[0])

        thread = threading.Thread(target=slow)
        thread.start()
        wait_until(lambda: "default/slow" in live.gateway.sessions.workflows)
        assert announce(live, "slow", {"type": "final"}) == (200, {"ignored": 0})
        assert done == []
        assert control(live, "workflows/slow")[0] == 200
        thread.join(20)
        assert done == [200]
        assert control(live, "workflows/slow")[0] == 404


def test_a_declared_workflow_without_sessions_can_end(seen: tuple[Live, Told]) -> None:
    live, _ = seen
    assert control(live, "workflows", {"workflow_id": "e"})[0] == 201
    assert announce(live, "e", {"type": "tool.end"}, {"type": "final"}) == (200, {"ignored": 1})
    assert control(live, "workflows/e")[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"events": []},
        {"events": [{"type": "tool.stop"}]},
        {"events": [{"type": "final", "session": ""}]},
        {"events": [{"type": "final", "session": "x" * 257}]},
        {"events": [{"type": "final", "prompt": "x"}]},
        {"events": [{"type": "final"}] * (MAX_EVENTS + 1)},
    ],
)
def test_what_cannot_be_read_is_refused(seen: tuple[Live, Told], body: Any) -> None:
    assert control(seen[0], "workflows/any/events", body)[0] == 400


def test_only_its_tenant_announces_for_a_workflow(tmp_path: Path) -> None:
    with keyed(tmp_path, "blue", "red") as locked:
        live = locked.live
        blue, red = (locked.tenants[name] for name in ("blue", "red"))
        named = {"x-saga-workflow-id": "w", "x-saga-session-id": "s"}
        assert ask(live.url + CHAT, chat("x"), headers={**blue, **named})[0] == 200
        path, body = "workflows/w/events", {"events": [{"type": "final"}]}
        assert control(live, path, body, headers=red)[0] == 404
        assert ask(live.url + CHAT, chat("x"), headers={**red, **named})[0] == 200
        assert control(live, path, body, headers=red) == (200, {"ignored": 0})
        assert control(live, "workflows/w", headers=blue)[0] == 200
        assert control(live, path, body, headers=blue) == (200, {"ignored": 0})


def test_a_request_says_where_it_comes_from_and_what_will_be_called(
    seen: tuple[Live, Told],
) -> None:
    live, told = seen
    headers = {"x-saga-workflow-id": "h", "x-saga-session-id": "main"}
    more = {"x-saga-step": "plan", "x-saga-next-tool": "bash"}
    assert ask(live.url + CHAT, chat("h"), headers={**headers, **more})[0] == 200
    one = session_of(live, "h")
    assert (one["step"], one["tool"]) == ("plan", "bash")
    ended = [event for event in told if isinstance(event, ev.RequestFinished)][-1]
    assert ended.tool == "bash"
    assert ask(live.url + CHAT, chat("h i"), headers=headers)[0] == 200
    one = session_of(live, "h")
    assert (one["step"], one["tool"]) == ("plan", None), "nothing new is said of the step"


def test_an_end_that_is_told_twice_ends_once(seen: tuple[Live, Told]) -> None:
    live, _ = seen
    step(live, "twice", "of twice")
    assert announce(live, "twice", {"type": "final"}, {"type": "final"}) == (200, {"ignored": 1})
    assert announce(live, "twice", {"type": "final"})[0] == 404
    step(live, "last", "of last")
    told = {"type": "final", "session": "of last"}, {"type": "final"}
    assert announce(live, "last", *told) == (200, {"ignored": 1})
