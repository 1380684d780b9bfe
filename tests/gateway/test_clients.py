"""The official SDKs, unmodified, through a gateway with two engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from tests.gateway.live import Live, gateway
from tests.serving import wait_until

SYSTEM = "You are a careful engineer. " * 40
TOOLS: Any = [{"type": "function", "function": {"name": "list_files", "parameters": {}}}]
RESPONSE_TOOLS: Any = [{"type": "function", "name": "look", "parameters": {}, "strict": False}]
MESSAGE_TOOLS: Any = [{"name": "read", "input_schema": {"type": "object"}}]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with gateway(engines=2, engine_options={"speed": 500.0, "model": "tiny"}) as one:
        yield one
        one.check_nothing_is_lost()


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def claude(live: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="any", max_retries=0) as sdk:
        yield sdk


def chat(user: str) -> Any:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


# ---- OpenAI: chat


def test_a_conversation_without_any_id_stays_on_one_engine(client: openai.OpenAI) -> None:
    """The SDK names no session: what is said tells that the steps belong together."""
    messages, engines, sessions = chat("conversation"), set(), set()
    for turn in range(5):
        raw = client.chat.completions.with_raw_response.create(model="tiny", messages=messages)
        reply = raw.parse()
        engines.add(raw.headers["x-saga-engine"])
        sessions.add(raw.headers["x-saga-session-id"])
        assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
        assert (turn == 0) == (not reply.usage.prompt_tokens_details.cached_tokens)
        messages += [
            reply.choices[0].message.to_dict(),
            {"role": "user", "content": f"And then, {turn}?"},
        ]
    assert (len(engines), len(sessions)) == (1, 1)


def test_a_streamed_chat_is_the_whole_one_in_parts(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=chat("stream"))
    options: Any = {"include_usage": True}
    text, finish, usage = "", None, None
    for chunk in client.chat.completions.create(
        model="tiny", messages=chat("stream"), stream=True, stream_options=options
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert whole.usage is not None and usage is not None
    assert (text, finish) == (whole.choices[0].message.content, "stop")
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_tools_of_chats(client: openai.OpenAI) -> None:
    messages = chat("tools")
    for turn in range(4):
        raw = client.chat.completions.with_raw_response.create(
            model="tiny", messages=messages, tools=TOOLS
        )
        message = raw.parse().choices[0].message
        assert message.tool_calls is not None
        call = message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "list_files"
        result = {"role": "tool", "tool_call_id": call.id, "content": f"file {turn}"}
        messages += [message.to_dict(), result]
        assert raw.headers["x-saga-session-source"] == "lineage"


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_that_was_called_is_known_to_the_gateway(
    live: Live, client: openai.OpenAI, stream: bool
) -> None:
    name = f"knows {stream}"
    with client.chat.completions.with_streaming_response.create(
        model="tiny",
        messages=chat("call"),
        tools=TOOLS,
        stream=stream,
        extra_headers={"x-saga-session-id": name},
    ) as answer:
        answer.read()
    session = live.gateway.sessions.sessions[f"default/{name}"]
    wait_until(lambda: session.tool == "list_files")


def test_streamed_tool_calls_of_chats(client: openai.OpenAI) -> None:
    calls: list[Any] = []
    for chunk in client.chat.completions.create(
        model="tiny", messages=chat("streamed call"), tools=TOOLS, stream=True
    ):
        for choice in chunk.choices:
            calls += choice.delta.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("list_files", "{}")
    ]


# ---- OpenAI: the rest


def test_completions(client: openai.OpenAI) -> None:
    prompt = "Once upon a time there was an engine."
    whole = client.completions.create(model="tiny", prompt=prompt, max_tokens=20)
    stream = client.completions.create(model="tiny", prompt=prompt, max_tokens=20, stream=True)
    text = "".join(choice.text for chunk in stream for choice in chunk.choices)
    assert text == whole.choices[0].text != ""


def test_responses_go_on_where_the_one_before_is_kept(client: openai.OpenAI) -> None:
    """Only one of the engines knows it: another one would answer 404."""
    engines = set()
    for number in range(6):
        before = client.responses.create(model="tiny", instructions=SYSTEM, input=f"One {number}?")
        for _ in range(3):
            raw = client.responses.with_raw_response.create(
                model="tiny", instructions=SYSTEM, input="Go on.", previous_response_id=before.id
            )
            before = raw.parse()
            assert before.usage is not None
            assert before.usage.input_tokens_details.cached_tokens > 0
        engines.add(raw.headers["x-saga-engine"])
        assert client.responses.retrieve(before.id).output_text == before.output_text != ""
    assert len(engines) == 2, "they would pass by chance if all were on one engine"


def test_a_session_of_its_own_still_goes_where_the_response_is_kept(client: openai.OpenAI) -> None:
    first = client.responses.with_raw_response.create(model="tiny", input="Many go on from here.")
    for number in range(6):
        raw = client.responses.with_raw_response.create(
            model="tiny",
            input="Go on.",
            previous_response_id=first.parse().id,
            extra_headers={"x-saga-session-id": f"fork {number}"},
        )
        assert raw.headers["x-saga-session-id"] == f"fork {number}"
        assert raw.headers["x-saga-engine"] == first.headers["x-saga-engine"]


def test_the_steps_of_a_chain_of_responses_are_one_session(client: openai.OpenAI) -> None:
    first = client.responses.with_raw_response.create(model="tiny", input="The first of a chain.")
    second = client.responses.with_raw_response.create(
        model="tiny", input="Go on.", previous_response_id=first.parse().id
    )
    assert second.headers["x-saga-session-source"] == "previous_response_id"
    assert second.headers["x-saga-session-id"] == first.headers["x-saga-session-id"]


def test_streamed_responses_with_tools(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input="Go on.", tools=RESPONSE_TOOLS) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text != ""
    call = final.output[1]
    assert call.type == "function_call"
    assert call.name == "look"
    after = client.responses.create(
        model="tiny",
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "a tree"}],
        previous_response_id=final.id,
    )
    assert after.status == "completed"


def test_a_response_that_nobody_keeps_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not known here"):
        client.responses.retrieve("resp_of_nobody")
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.create(model="tiny", input="Go on.", previous_response_id="resp_of_nobody")


def test_embeddings_and_models(client: openai.OpenAI) -> None:
    data = client.embeddings.create(model="tiny", input=["a", "b"], dimensions=8).data
    assert [len(one.embedding) for one in data] == [8, 8]
    assert [model.id for model in client.models.list()] == ["tiny"]


# ---- Anthropic


def test_messages_with_tools_stay_on_one_engine(claude: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "Read the file." * 10}]
    engines = set()
    for turn in range(4):
        raw = claude.messages.with_raw_response.create(
            model="tiny", max_tokens=400, system=SYSTEM, tools=MESSAGE_TOOLS, messages=messages
        )
        reply = raw.parse()
        engines.add(raw.headers["x-saga-engine"])
        assert (turn == 0) == (not reply.usage.cache_read_input_tokens)
        call = reply.content[-1]
        assert call.type == "tool_use"
        assert (reply.stop_reason, call.name) == ("tool_use", "read")
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "42"}
        messages += [
            {"role": "assistant", "content": [block.to_dict() for block in reply.content]},
            {"role": "user", "content": [result]},
        ]
    assert len(engines) == 1


def test_streamed_messages(claude: anthropic.Anthropic) -> None:
    question: Any = [{"role": "user", "content": "What is new?"}]
    whole = claude.messages.create(model="tiny", max_tokens=300, messages=question)
    with claude.messages.stream(model="tiny", max_tokens=300, messages=question) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text != ""
    assert final.usage.output_tokens == whole.usage.output_tokens
    count = claude.messages.count_tokens(model="tiny", messages=question)
    total = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    assert count.input_tokens == total


def test_streamed_tool_calls_of_messages(claude: anthropic.Anthropic) -> None:
    question: Any = [{"role": "user", "content": "Read it."}]
    with claude.messages.stream(
        model="tiny", max_tokens=300, messages=question, tools=MESSAGE_TOOLS
    ) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use"]


# ---- errors


def test_an_engines_own_errors_are_the_sdks(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens must be an integer") as chats:
        client.chat.completions.create(model="tiny", messages=chat("none"), max_tokens=-1)
    assert isinstance(chats.value.body, dict)
    assert (chats.value.body["type"], chats.value.body["param"]) == (
        "BadRequestError",
        "max_tokens",
    )
    with pytest.raises(anthropic.BadRequestError, match="at least one message is required"):
        claude.messages.create(model="tiny", max_tokens=5, messages=[])
