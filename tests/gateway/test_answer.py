"""What is read from answers while they pass, however they are cut into chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.answers import Encode, compact, recorded, spaced

from saga.gateway.answer import HEAD_BYTES, TAIL_BYTES, AnswerReader, Usage

TEXT = "I shall look at the file.\n\ndata: nothing yet"
NAMES = sorted(recorded(TEXT))
ENCODINGS = (compact, spaced)


def read(*chunks: bytes, anthropic: bool = False) -> Usage:
    reader = AnswerReader(anthropic=anthropic)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.usage()


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("encode", ENCODINGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_api_tells_its_usage(name: str, encode: Encode) -> None:
    one = recorded(TEXT, encode)[name]
    assert read(one.body, anthropic=one.anthropic) == one.usage


@given(
    st.sampled_from(NAMES), st.sampled_from(ENCODINGS), st.lists(st.integers(0, 10**6), max_size=40)
)
def test_the_cuts_between_chunks_do_not_matter(
    name: str, encode: Encode, places: list[int]
) -> None:
    one = recorded(TEXT, encode)[name]
    assert read(*cut(one.body, places), anthropic=one.anthropic) == one.usage


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_may_come_byte_by_byte(name: str) -> None:
    one = recorded(TEXT)[name]
    chunks = [bytes([byte]) for byte in one.body]
    assert read(*chunks, anthropic=one.anthropic) == one.usage


LURES = st.sampled_from(
    [
        '"prompt_tokens": 5,',
        '"usage": {"completion_tokens": 7, "cached_tokens": 8}',
        '{"type": "tool_use", "name": "lure"}',
        '"function": {"name": "lure"}',
        '"id": "lure"',
        "\ndata: x\n\n",
        "\\",
        '\\"input_tokens\\": 9,',
    ]
)


@given(
    st.sampled_from(NAMES),
    st.sampled_from(ENCODINGS),
    st.lists(LURES | st.text(max_size=20), max_size=8).map("".join),
    st.lists(st.integers(0, 10**6), max_size=8),
)
def test_what_a_model_says_is_never_a_field(
    name: str, encode: Encode, text: str, places: list[int]
) -> None:
    one = recorded(text, encode)[name]
    assert read(*cut(one.body, places), anthropic=one.anthropic) == one.usage


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [HEAD_BYTES, TAIL_BYTES, 10 * TAIL_BYTES])
def test_a_long_text_between_is_passed_over(name: str, length: int) -> None:
    one = recorded("word " * (length // 5))[name]
    chunks = cut(one.body, list(range(0, len(one.body), 999)))
    assert read(*chunks, anthropic=one.anthropic) == one.usage


@given(st.integers(1, 30), st.lists(st.integers(0, 10**6), max_size=20))
def test_tokens_are_counted_as_events_where_no_usage_is_told(
    num_tokens: int, places: list[int]
) -> None:
    """One event a token, the first with the role and the last one done."""
    body = b'data: {"choices": [{"delta": {"content": "data: "}}]}\n\n' * (num_tokens + 1)
    usage = read(*cut(body + b"data: [DONE]\n\n", places))
    assert usage == Usage(None, num_tokens, None, None, None, None)


def test_a_number_that_the_memory_cuts_in_two_is_none() -> None:
    """Half of a number is another number."""
    before, name = b'data: {"text": "', b'", "prompt_tokens": '
    filling = b"x" * (HEAD_BYTES - 2 - len(before) - len(name))
    body = before + filling + name + b"12345}\n\n" + b"," * TAIL_BYTES
    assert read(body).prompt_tokens is None


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"no JSON", b'{"usage": null}', b'{"usage": {"prompt_tokens": null}}']
)
def test_an_answer_that_tells_nothing(body: bytes) -> None:
    assert read(body) == Usage(None, None, None, None, None, None)


def test_of_several_calls_the_first_counts() -> None:
    body = b'[{"type":"tool_use","id":"1","name":"a"},{"type":"tool_use","id":"2","name":"b"}]'
    for chunks in ([body], cut(body, list(range(len(body))))):
        usage = read(*chunks)
        assert (usage.tool, usage.call_id) == ("a", "1")
