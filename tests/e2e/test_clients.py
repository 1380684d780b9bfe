"""The official SDKs through the gateway get what they would get from vLLM itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from tests.e2e.conftest import Gateway
from tests.e2e.processes import MODEL, Server, Vllm, post

CONTEXT = "All that was said before. " * 20
CHAT: Any = [{"role": "user", "content": CONTEXT}]
SAME = {"model": MODEL, "temperature": 0}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**SAME, "messages": CHAT, "max_tokens": 30},
    "/v1/completions": {**SAME, "prompt": CONTEXT, "max_tokens": 30},
    "/v1/messages": {**SAME, "messages": CHAT, "max_tokens": 30},
    "/v1/responses": {**SAME, "input": CONTEXT, "max_output_tokens": 30},
}
TOO_LONG = "x" * 5_000
REFUSED: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": "none"},
        {"messages": [{"role": "user", "content": TOO_LONG}]},
        {"max_tokens": -1},
    ],
    "/v1/completions": [{"prompt": {}}, {"prompt": TOO_LONG}, {"max_tokens": -1}],
    "/v1/messages": [
        {"max_tokens": "many"},
        {"messages": [{"role": "user", "content": TOO_LONG}]},
    ],
    "/v1/responses": [{"input": 1}, {"input": TOO_LONG}],
}
NEVER_THE_SAME = {"id", "created", "created_at"}


@pytest.fixture
def engine(engines: list[Vllm]) -> Vllm:
    return engines[0]


@pytest.fixture
def server(serve: Gateway, engine: Vllm) -> Iterator[Server]:
    """A gateway in front of one engine, so that the same cache is asked."""
    with serve(engines=[engine]) as one:
        yield one


def comparable(document: Any) -> Any:
    """A document without what is another one in each answer."""
    match document:
        case dict():
            kept = {name: value for name, value in document.items() if name not in NEVER_THE_SAME}
            return {name: comparable(value) for name, value in kept.items()}
        case list():
            return [comparable(value) for value in document]
    return document


# ---- the same, direct and through the gateway


@pytest.mark.parametrize("path", BODIES)
def test_answers_are_the_engines(path: str, server: Server, engine: Vllm) -> None:
    post(engine.url + path, BODIES[path])  # both of the others find this in the cache
    direct = post(engine.url + path, BODIES[path])
    through = post(server.url + path, BODIES[path])
    assert direct[0] == through[0] == 200
    assert comparable(through[1]) == comparable(direct[1])
    assert through[2]["x-saga-engine"] == engine.name


@pytest.mark.parametrize("path", REFUSED)
def test_errors_are_the_engines(path: str, server: Server, engine: Vllm) -> None:
    for change in (*REFUSED[path], {"model": "another"}):
        direct = post(engine.url + path, BODIES[path] | change)
        through = post(server.url + path, BODIES[path] | change)
        assert direct[0] in (400, 404)
        assert through[:2] == direct[:2]


def openai_stream(url: str) -> tuple[str, str, int]:
    """Text, reason for the end, and output tokens of a streamed chat."""
    text, finish, tokens = "", "", 0
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        for chunk in client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **BODIES["/v1/chat/completions"]
        ):
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
    return text, finish, tokens


def test_streamed_chats(server: Server, engine: Vllm) -> None:
    text, finish, tokens = openai_stream(server.url)
    assert (len(text), finish, tokens) == (30, "length", 30)
    assert (text, finish, tokens) == openai_stream(engine.url)


def anthropic_stream(url: str) -> tuple[str, str | None, int]:
    with (
        anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client,
        client.messages.stream(
            max_tokens=30, messages=CHAT, model=MODEL, extra_body={"temperature": 0}
        ) as stream,
    ):
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    return text, final.stop_reason, final.usage.output_tokens


def test_streamed_messages(server: Server, engine: Vllm) -> None:
    text, reason, tokens = anthropic_stream(server.url)
    assert (len(text), reason, tokens) == (30, "max_tokens", 30)
    assert (text, reason, tokens) == anthropic_stream(engine.url)


def responses_stream(url: str) -> tuple[str, str]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        events = client.responses.create(stream=True, **BODIES["/v1/responses"])
        told = list(events)
    text = "".join(event.delta for event in told if event.type == "response.output_text.delta")
    return text, told[-1].type


def test_streamed_responses(server: Server, engine: Vllm) -> None:
    text, last = responses_stream(server.url)
    assert len(text) == 30
    assert (text, last) == responses_stream(engine.url)


# ---- what only a gateway in front of several has to do


def test_responses_go_on_where_the_one_before_is_kept(serve: Gateway) -> None:
    """Only one of the engines knows it: the other would answer 404."""
    places = set()
    with (
        serve() as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        for number in range(4):
            text = f"{number}. {CONTEXT}"
            before = client.responses.create(model=MODEL, input=text, max_output_tokens=10)
            raw = client.responses.with_raw_response.create(
                model=MODEL, input="Go on.", previous_response_id=before.id, max_output_tokens=10
            )
            after = raw.parse()
            assert after.usage is not None
            assert after.usage.input_tokens_details.cached_tokens >= 0.8 * len(text)
            assert client.responses.retrieve(before.id).output_text == before.output_text
            places.add(raw.headers["x-saga-engine"])
    assert len(places) == 2, "it would pass by chance if all were on one engine"


def test_other_routes_are_passed_through(server: Server, engine: Vllm) -> None:
    body = {"model": MODEL, "prompt": "abc"}
    assert post(f"{server.url}/tokenize", body)[:2] == post(f"{engine.url}/tokenize", body)[:2]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        assert [model.id for model in client.models.list()] == [MODEL]
