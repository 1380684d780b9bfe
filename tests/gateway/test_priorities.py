"""Priorities of workflows, as clients declare them and as they are served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
from tests.gateway.asking import packed
from tests.gateway.live import MODEL, Live, ask, chat, fetch, gateway
from tests.gateway.raw import CHAT, DIALECTS
from tests.gateway.test_waiting import NARROW, engaged, until_held

from saga.core import actions as act
from saga.core import events as ev
from saga.gateway.service import Gateway

SAID: Any = [{"role": "user", "content": "fix it"}]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with gateway(engines=1, engine_options={"speed": 500.0}) as one:
        yield one
        one.check_nothing_is_lost()


def known(live: Live, workflow: str) -> float:
    return live.gateway.host.scheduler.state.workflows[f"default/{workflow}"].priority


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"X-Saga-Priority": "2.5"}, {}),
        ({"X-Saga-Context": packed({"priority": 2.5})}, {}),
        ({}, {"saga": {"priority": 2.5}}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_sdk_declares_one(
    live: Live, stream: bool, headers: dict[str, str], body: dict[str, Any]
) -> None:
    name = f"sdk-{stream}-{list(headers)}"
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any") as client:
        client.chat.completions.create(
            model=MODEL,
            messages=SAID,
            stream=stream,
            extra_headers={"X-Saga-Workflow-Id": name, **headers},
            extra_body=body,
        )
    assert known(live, name) == 2.5


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("told", ["high", "0", "10.5", "-1", ""])
def test_one_that_cannot_be_read_changes_nothing(live: Live, path: str, told: str) -> None:
    name = f"odd-{told}-{path.replace('/', '-')}"
    headers = {"x-saga-workflow-id": name, "x-saga-priority": told}
    assert ask(live.url + path, chat("x"), headers=headers)[0] == 200
    assert known(live, name) == 1.0


def test_it_is_told_with_the_first_request(live: Live) -> None:
    for priority in ("4", "8"):
        headers = {"x-saga-workflow-id": "begun", "x-saga-priority": priority}
        assert ask(live.url + CHAT, chat(priority), headers=headers)[0] == 200
    assert known(live, "begun") == 4.0


def test_or_with_the_declaration(live: Live) -> None:
    for name, declared, expected in (("more", 10, 10.0), ("less", 0.1, 0.1), ("none", None, 1.0)):
        document = {"workflow_id": name, "priority": declared}
        assert ask(f"{live.url}/v1/saga/workflows", document)[0] == 201
        headers = {"x-saga-workflow-id": name, "x-saga-priority": "3"}
        assert ask(live.url + CHAT, chat(name), headers=headers)[0] == 200
        assert known(live, name) == expected


class Served:
    """Sessions in the order in which their requests went to an engine."""

    def __init__(self) -> None:
        self.sessions: list[str] = []
        self._session: dict[str, str] = {}

    def __call__(self, event: ev.Event, actions: Sequence[act.Action]) -> None:
        if isinstance(event, ev.RequestArrived):
            self._session[event.request] = event.session
        for action in actions:
            if isinstance(action, act.Dispatch):
                self.sessions.append(self._session[action.request])


def teach(gateway: Gateway) -> None:
    """Coders take 80 s each."""
    gateway.host.scheduler.view.graphs.learn("default/coder").ideal_us.add(80_000_000)


def test_of_a_tenants_workflows_those_of_higher_priority_go_first() -> None:
    waiting = ("0.1", "1", "10")
    served = Served()

    async def scenario(live: Live) -> None:
        async with engaged(live):
            asked = []
            for number, priority in enumerate(waiting, 1):
                headers = {"x-saga-agent": "coder", "x-saga-session-id": priority}
                headers["x-saga-priority"] = priority
                request = fetch(live.url + CHAT, chat(priority, stream=True), headers=headers)
                asked.append(asyncio.create_task(request))
                await until_held(live, number)
        assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 3

    options = {"speed": 20.0}
    with gateway(engines=1, engine_options=options, settings=NARROW, observe=served) as one:
        one.told(teach)
        asyncio.run(scenario(one))
        one.check_nothing_is_lost()
    assert served.sessions[1:] == ["default/10", "default/1", "default/0.1"]
