"""Bodies: whatever comes is understood or refused, and nothing else happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.factory import Bench, blocks

from saga.engine.asks import Ask, plain_id, read_hints
from saga.engine.chat import parse_chat, parse_completion
from saga.engine.control import OPERATIONS
from saga.engine.exchange import ApiError
from saga.engine.extras import embeddings, tokenize
from saga.engine.generation import Hints
from saga.engine.messages import parse_messages
from saga.engine.responses import ResponseStore, parse_response
from saga.engine.tokens import Turn, plan_answer

FIELDS = (
    *("messages", "input", "prompt", "system", "instructions", "tools", "tool_choice", "model"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "ignore_eos", "n"),
    *("stream", "stream_options", "priority", "session_id", "cache_salt", "vllm_xargs", "store"),
    *("saga_emulate", "previous_response_id", "dimensions", "encoding_format"),
    *("session", "ttl_s", "score", "request"),
)
INNER = (
    *("role", "content", "type", "text", "name", "function", "arguments", "tool_calls", "input"),
    *("output", "output_tokens", "tool", "saga_session", "saga_ttl_s", "saga_score", "saga_final"),
)
WORDS = ("user", "assistant", "tool", "system", "message", "function_call", "tool_result", "{}")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8)

parsers: list[Callable[[dict[str, Any]], Ask]] = [
    lambda body: parse_chat(body, {}, 8),
    lambda body: parse_completion(body, {}, 8),
    lambda body: parse_messages({"max_tokens": 5} | body, {}, 8),
    lambda body: parse_response(body, {}, 8, ResponseStore()),
]


@pytest.mark.parametrize("parse", parsers)
@given(BODIES)
def test_any_body_is_understood_or_refused(
    parse: Callable[[dict[str, Any]], Ask], body: dict[str, Any]
) -> None:
    try:
        ask = parse(body)
    except ApiError as error:
        assert error.status in (400, 404)
    else:
        answer = plan_answer(ask.prompt, ask.wish, room=100)
        assert ask.prompt.num_tokens >= 1
        assert 1 <= answer.num_tokens <= 100


@given(BODIES)
def test_so_is_any_body_of_the_other_routes(body: dict[str, Any]) -> None:
    bench = Bench()
    bench.ask(blocks("ab"), session="user")
    for operation in OPERATIONS.values():
        understands_or_refuses(partial(operation, bench.engine, body))
    understands_or_refuses(partial(embeddings, body))
    understands_or_refuses(partial(tokenize, body, 100))
    bench.engine.check()


def understands_or_refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except ApiError as error:
        assert error.status in (400, 404)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", "a"), ("x" * 256, "x" * 256), ("x" * 257, None), ("a\nb", None), ("", None), (7, None)],
)
def test_ids_are_taken_or_ignored(value: object, expected: str | None) -> None:
    assert plain_id(value) == expected


@pytest.mark.parametrize(
    ("xargs", "expected"),
    [
        ({}, Hints()),
        (
            {"saga_session": "s", "saga_ttl_s": 1.5, "saga_score": 2},
            Hints(session="s", ttl_s=1.5, score=2.0),
        ),
        ({"saga_ttl_s": "0"}, Hints(ttl_s=0.0)),
        ({"saga_final": "true"}, Hints(final=True)),
        ({"saga_final": 0}, Hints()),
        ({"saga_final": [1]}, Hints()),
    ],
)
def test_hints(xargs: Mapping[str, Any], expected: Hints) -> None:
    assert read_hints({"vllm_xargs": xargs}, {}) == expected


@pytest.mark.parametrize("bound", [{"max_responses": 3}, {"max_bytes": 30}])
def test_kept_responses_are_bounded(bound: dict[str, int]) -> None:
    store = ResponseStore(**bound)
    for number in range(5):
        store.put({"id": str(number)}, (Turn("user", (b"ten bytes.",)),))
    assert [store.response(kept)["id"] for kept in "234"] == ["2", "3", "4"]
    for gone in "01":
        with pytest.raises(ApiError):
            store.turns(gone)
