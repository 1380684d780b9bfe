"""Through the SDKs that agents use, against a real server on the loopback device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from tests.engine.factory import Running, running

SYSTEM = "You are a careful engineer. " * 20
TOOLS: Any = [{"type": "function", "function": {"name": "list_files", "parameters": {}}}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Running]:
    with running(speed=500.0, model="tiny") as server:
        yield server


@pytest.fixture
def client(engine: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="any", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def claude(engine: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=engine.url, api_key="any", max_retries=0) as sdk:
        yield sdk


def chat(user: str) -> Any:
    return [{"role": "system", "content": SYSTEM + user}, {"role": "user", "content": user}]


def cached(usage: Any) -> int:
    return usage.prompt_tokens_details.cached_tokens or 0


# ---- chat completions


def test_a_conversation_finds_its_prompts_and_answers_in_the_cache(client: openai.OpenAI) -> None:
    messages = chat("conversation")
    before = 0
    for turn in range(4):
        reply = client.chat.completions.create(model="any", messages=messages)
        assert reply.usage is not None
        assert cached(reply.usage) == max(0, before - 1) // 16 * 16
        before = reply.usage.total_tokens
        message = reply.choices[0].message
        assert (message.role, reply.choices[0].finish_reason, reply.model) == (
            "assistant",
            "stop",
            "any",
        )
        messages += [message.to_dict(), {"role": "user", "content": f"And then, {turn}?"}]


def test_a_stream_brings_the_text_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="any", messages=chat("stream"), seed=1)
    options: Any = {"include_usage": True}
    text, finish, usage, first_delta = "", None, None, None
    for chunk in client.chat.completions.create(
        model="any", messages=chat("stream"), stream=True, stream_options=options
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            first_delta = first_delta or choice.delta.role
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert whole.usage is not None and usage is not None
    assert (text, finish, first_delta) == (whole.choices[0].message.content, "stop", "assistant")
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert cached(usage) == (whole.usage.prompt_tokens - 1) // 16 * 16


def test_usage_is_streamed_to_those_who_ask(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(model="any", messages=chat("quiet"), stream=True)
    assert all(chunk.usage is None for chunk in chunks)


def test_tools_are_called_until_there_were_enough_results(client: openai.OpenAI) -> None:
    messages = chat("tools")
    for turn in range(9):
        reply = client.chat.completions.create(model="any", messages=messages, tools=TOOLS)
        choice = reply.choices[0]
        if turn == 8:
            assert (choice.finish_reason, choice.message.tool_calls) == ("stop", [])
            return
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        call = choice.message.tool_calls[0]
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("list_files", "{}")
        assert turn == 0 or (reply.usage is not None and cached(reply.usage) > 0)
        messages += [
            choice.message.to_dict(),
            {"role": "tool", "tool_call_id": call.id, "content": f"file {turn}"},
        ]


def test_an_answer_with_a_call_is_found_in_the_cache(client: openai.OpenAI) -> None:
    messages = chat("call in the cache")
    first = client.chat.completions.create(model="any", messages=messages, tools=TOOLS)
    messages += [first.choices[0].message.to_dict(), {"role": "tool", "content": "a b c"}]
    second = client.chat.completions.create(model="any", messages=messages, tools=TOOLS)
    assert first.usage is not None and second.usage is not None
    assert cached(second.usage) == (first.usage.total_tokens - 1) // 16 * 16


def test_tool_calls_are_streamed(client: openai.OpenAI) -> None:
    calls: list[Any] = []
    for chunk in client.chat.completions.create(
        model="any", messages=chat("streamed call"), tools=TOOLS, stream=True
    ):
        for choice in chunk.choices:
            calls += choice.delta.tool_calls or []
    assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
        (0, "list_files", "{}")
    ]


def test_tool_choice_and_forced_answers(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(
            model="any", messages=chat("choice"), tools=TOOLS, **options
        )

    assert not ask(tool_choice="none").choices[0].message.tool_calls
    named: Any = {"type": "function", "function": {"name": "other"}}
    assert ask(tool_choice=named).choices[0].message.tool_calls[0].function.name == "other"
    forced = ask(extra_body={"saga_emulate": {"output_tokens": 77, "tool": None}})
    assert (forced.usage.completion_tokens, forced.choices[0].message.tool_calls) == (77, [])
    xargs = {"saga_emulate": '{"output_tokens": 50, "tool": "grep"}'}
    forced = ask(tool_choice="none", extra_body={"vllm_xargs": xargs})
    assert forced.usage.completion_tokens == 50
    assert forced.choices[0].message.tool_calls[0].function.name == "grep"


def test_length_limits(client: openai.OpenAI) -> None:
    short = client.chat.completions.create(model="any", messages=chat("short"), max_tokens=5)
    assert short.usage is not None
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (5, "length")
    body = {"ignore_eos": True}
    full = client.chat.completions.create(
        model="any", messages=chat("long"), max_completion_tokens=700, extra_body=body
    )
    assert full.usage is not None
    assert full.usage.completion_tokens == 700


# ---- completions, embeddings, models


def test_completions_continue_a_raw_prompt(client: openai.OpenAI) -> None:
    prompt = "Once upon a time there was an engine" * 4 + "."
    first = client.completions.create(model="any", prompt=prompt, max_tokens=40)
    prompt += first.choices[0].text + " The end."
    text, usage = "", None
    for chunk in client.completions.create(
        model="any",
        prompt=prompt,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    ):
        text += "".join(choice.text for choice in chunk.choices)
        usage = chunk.usage or usage
    assert first.usage is not None and usage is not None
    assert cached(usage) == (first.usage.total_tokens - 1) // 16 * 16
    assert usage.completion_tokens == 20
    again = client.completions.create(model="any", prompt=[prompt], max_tokens=20)
    assert again.choices[0].text == text


def test_embeddings_are_unit_vectors_of_their_text(client: openai.OpenAI) -> None:
    both = client.embeddings.create(model="any", input=["a", "b"], dimensions=8).data
    floats = client.embeddings.create(
        model="any", input="a", dimensions=8, encoding_format="float"
    ).data
    assert both[0].embedding == floats[0].embedding != both[1].embedding
    assert sum(x * x for x in both[0].embedding) == pytest.approx(1.0, abs=1e-5)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


# ---- responses


def test_responses_continue_from_the_one_before(client: openai.OpenAI) -> None:
    first = client.responses.create(model="any", instructions=SYSTEM, input="Where are we?")
    second = client.responses.create(
        model="any", instructions=SYSTEM, input="And now?", previous_response_id=first.id
    )
    assert first.usage is not None and second.usage is not None
    total = first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens == (total - 1) // 16 * 16
    assert client.responses.retrieve(first.id).output_text == first.output_text != ""
    assert (first.status, first.object) == ("completed", "response")


def test_a_conversation_whose_items_are_sent_again_is_the_same(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "look", "parameters": {}, "strict": False}]
    items: list[Any] = [{"role": "user", "content": "What do you see?" * 9}]
    first = client.responses.create(model="any", input=items, tools=tools)
    assert [item.type for item in first.output] == ["message", "function_call"]
    call = first.output[1]
    assert call.type == "function_call"
    items += [item.to_dict() for item in first.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "A tree."})
    second = client.responses.create(model="any", input=items, tools=tools)
    assert first.usage is not None and second.usage is not None
    total = first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens == (total - 1) // 16 * 16


def test_responses_are_streamed_as_events(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "look", "parameters": {}, "strict": False}]
    with client.responses.stream(model="any", input="Go on.", tools=tools) as stream:
        events = list(stream)
        final = stream.get_final_response()
    numbers = [event.sequence_number for event in events if hasattr(event, "sequence_number")]
    assert numbers == sorted(numbers)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text != ""
    assert events[-1].type == "response.completed"
    assert final.output[1].type == "function_call"
    assert client.responses.retrieve(final.id).output_text == final.output_text


def test_a_response_cut_short_says_so(client: openai.OpenAI) -> None:
    cut = client.responses.create(model="any", input="Tell me all.", max_output_tokens=3)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_what_is_not_to_be_kept_is_not(client: openai.OpenAI) -> None:
    gone = client.responses.create(model="any", input="Forget this.", store=False)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve(gone.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.create(model="any", input="Go on.", previous_response_id=gone.id)


# ---- messages


def test_messages_with_tools_over_several_turns(claude: anthropic.Anthropic) -> None:
    tools: Any = [{"name": "read", "input_schema": {"type": "object"}}]
    messages: Any = [{"role": "user", "content": "Read the file." * 10}]
    before = 0
    for _ in range(3):
        reply = claude.messages.create(
            model="any", max_tokens=400, system=SYSTEM, tools=tools, messages=messages
        )
        usage = reply.usage
        assert usage.cache_read_input_tokens == max(0, before - 1) // 16 * 16
        before = usage.input_tokens + usage.cache_read_input_tokens + usage.output_tokens
        assert reply.stop_reason == "tool_use"
        call = reply.content[-1]
        assert call.type == "tool_use"
        assert (call.name, call.input) == ("read", {})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "42"}
        messages += [
            {"role": "assistant", "content": [block.to_dict() for block in reply.content]},
            {"role": "user", "content": [result]},
        ]


def test_messages_are_streamed(claude: anthropic.Anthropic) -> None:
    question: Any = [{"role": "user", "content": "What is new?"}]
    whole = claude.messages.create(model="any", max_tokens=300, messages=question)
    with claude.messages.stream(model="any", max_tokens=300, messages=question) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    total = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    count = claude.messages.count_tokens(model="any", messages=question)
    assert total == count.input_tokens


def test_streamed_calls_of_messages(claude: anthropic.Anthropic) -> None:
    tools: Any = [{"name": "read", "input_schema": {"type": "object"}}]
    question: Any = [{"role": "user", "content": "Read it."}]
    with claude.messages.stream(
        model="any", max_tokens=300, messages=question, tools=tools
    ) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use"]
    assert final.stop_reason == "tool_use"


def test_one_conversation_by_two_apis_shares_its_cache(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    text = "The same words, whoever carries them. " * 10
    first = client.chat.completions.create(
        model="any",
        messages=[{"role": "system", "content": text}, {"role": "user", "content": "?"}],
    )
    second = claude.messages.create(
        model="any", max_tokens=9, system=text, messages=[{"role": "user", "content": "?"}]
    )
    assert first.usage is not None
    expected = (first.usage.prompt_tokens - 1) // 16 * 16
    assert second.usage.cache_read_input_tokens == expected > 0


# ---- errors and time


def test_a_context_longer_than_the_cache_is_refused_in_vllms_words() -> None:
    with (
        running(kv_tokens=160, speed=500.0) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
        anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as claude,
    ):
        question: Any = [{"role": "user", "content": "x" * 400}]
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="any", messages=question, max_tokens=100)
        assert refused.value.body == {
            "message": "This model's maximum context length is 160 tokens. However, you requested "
            "100 output tokens and your prompt contains at least 103 input tokens, for a total of "
            "at least 203 tokens. Please reduce the length of the input prompt or the number of "
            "requested output tokens. (parameter=input_tokens, value=103)",
            "type": "BadRequestError",
            "param": "input_tokens",
            "code": 400,
        }
        with pytest.raises(anthropic.BadRequestError, match="maximum context length is 160"):
            claude.messages.create(model="any", messages=question, max_tokens=100)
        fits = client.chat.completions.create(model="any", messages=question)
        assert fits.usage is not None
        assert fits.usage.total_tokens <= 160


def test_without_the_key_nothing_is_answered() -> None:
    with (
        running(api_key="secret", speed=500.0) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="guess", max_retries=0) as stranger,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client,
        anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0) as claude,
    ):
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        assert len(client.models.list().data) == 1
        question: Any = [{"role": "user", "content": "hello"}]
        assert claude.messages.create(model="any", messages=question, max_tokens=3).content


def test_a_stream_takes_the_time_that_the_model_takes(client: openai.OpenAI) -> None:
    """At half speed, 40 steps of about 7 ms take at least 0.5 s; no upper bound on a busy host."""
    with (
        running(speed=0.5) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as slow,
    ):
        began = time.monotonic()
        stream = slow.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "?"}],
            stream=True,
            extra_body={"saga_emulate": {"output_tokens": 40}},
        )
        chunks = sum(bool(chunk.choices[0].delta.content) for chunk in stream)
        generated = server.app.engine.stats()["model_us"] / 0.5e6
        assert chunks >= 10, "as time passes, not all at the end"
        assert 0.3 < time.monotonic() - began <= generated + 1
