"""Workflows that cannot make their deadline, as clients are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import msgspec
import openai
import pytest
from tests.gateway.live import MODEL, Live, ask, chat, fetch, gateway
from tests.gateway.raw import CHAT, DIALECTS, MESSAGES, refusal

from saga.gateway.service import Gateway

CODER = {"x-saga-agent": "coder"}
HOPELESS = {**CODER, "x-saga-deadline-ms": "30000"}
WHY = "its deadline is in 30.0 s, and 90 % of workflows of type coder take at least 80.0 s"
SAID: Any = [{"role": "user", "content": "fix it"}]


def teach(gateway: Gateway) -> None:
    """Coders have taken 80 s each."""
    for _ in range(10):
        gateway.host.scheduler.view.graphs.learn("default/coder").durations_us.observe(80_000_000)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with gateway(engines=1, engine_options={"speed": 500.0}) as one:
        one.told(teach)
        yield one
        one.check_nothing_is_lost()


@pytest.fixture
def num_arrived(live: Live) -> int:
    return live.outcomes()["arrived"]


def left_of(live: Live, workflow: str) -> int:
    """Status of the workflow's page."""
    return ask(f"{live.url}/v1/saga/workflows/{workflow}")[0]


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_sdk_is_told_at_once_and_does_not_try_again(
    live: Live, num_arrived: int, stream: bool
) -> None:
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="any") as client,
        pytest.raises(openai.UnprocessableEntityError) as caught,
    ):
        client.chat.completions.create(
            model=MODEL, messages=SAID, stream=stream, extra_headers=HOPELESS
        )
    assert client.max_retries > 0
    assert (caught.value.code, caught.value.type) == (
        "deadline_unreachable",
        "UnprocessableEntityError",
    )
    assert WHY in caught.value.message
    assert live.outcomes()["arrived"] == num_arrived + 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_anthropic_sdk_is_told_at_once_and_does_not_try_again(
    live: Live, num_arrived: int, stream: bool
) -> None:
    with (
        anthropic.Anthropic(base_url=live.url, api_key="any") as client,
        pytest.raises(anthropic.UnprocessableEntityError) as caught,
    ):
        client.messages.create(
            model=MODEL, max_tokens=9, messages=SAID, stream=stream, extra_headers=HOPELESS
        )
    assert client.max_retries > 0
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "deadline_unreachable", "message": WHY},
    }
    assert live.outcomes()["arrived"] == num_arrived + 1


@pytest.mark.parametrize("path", DIALECTS)
def test_a_refused_workflow_is_over(live: Live, path: str) -> None:
    name = path.replace("/", "-")
    named = {"x-saga-workflow-id": name, "x-saga-session-id": f"{name}-main"}
    rejected = live.outcomes()["rejected"]
    status, document, headers = ask(live.url + path, chat("x"), headers={**HOPELESS, **named})
    kinds = {CHAT: "UnprocessableEntityError", MESSAGES: "deadline_unreachable"}
    assert (status, refusal(path, document)) == (422, (kinds[path], WHY))
    assert "retry-after" not in {header.lower() for header in headers}
    assert live.outcomes()["rejected"] == rejected + 1
    assert left_of(live, name) == 404
    assert f"default/{name}-main" not in live.gateway.sessions.sessions
    assert f"default/{name}" not in live.gateway.host.scheduler.state.workflows
    assert ask(live.url + path, chat("x"), headers={**CODER, **named})[0] == 200, "without one"
    assert left_of(live, name) == 200


def test_a_declared_deadline_counts_as_well(live: Live) -> None:
    declared = {"workflow_id": "declared", "agent_type": "coder", "deadline_ms": 30_000}
    assert ask(f"{live.url}/v1/saga/workflows", declared)[0] == 201
    named = {"x-saga-workflow-id": "declared"}
    status, document, _ = ask(live.url + CHAT, chat("x"), headers=named)
    assert (status, document["error"]["code"]) == (422, "deadline_unreachable")
    assert left_of(live, "declared") == 404


def test_who_has_begun_is_not_refused_any_more(live: Live) -> None:
    named = {**CODER, "x-saga-workflow-id": "begun", "x-saga-session-id": "begun"}
    for deadline_ms in ("100000", "1", "1"):
        headers = {**named, "x-saga-deadline-ms": deadline_ms}
        assert ask(live.url + CHAT, chat("x"), headers=headers)[0] == 200


def test_all_that_a_refused_workflow_begins_with_is_refused(live: Live) -> None:
    """Nothing of it is left, however its requests and its end meet."""

    async def scenario() -> list[int]:
        headers = [
            {**HOPELESS, "x-saga-workflow-id": "many", "x-saga-session-id": f"many-{number % 4}"}
            for number in range(12)
        ]
        told = await asyncio.gather(
            *(fetch(live.url + CHAT, chat("x", stream=True), headers=one) for one in headers)
        )
        assert {msgspec.json.decode(data)["error"]["code"] for _, data, _ in told} == {
            "deadline_unreachable"
        }
        return [status for status, _, _ in told]

    assert asyncio.run(scenario()) == [422] * 12
    assert left_of(live, "many") == 404


def test_a_gateway_that_knows_nothing_refuses_nobody(live: Live) -> None:
    headers = {"x-saga-agent": "novice", "x-saga-deadline-ms": "1"}
    assert ask(live.url + CHAT, chat("x"), headers=headers)[0] == 200
