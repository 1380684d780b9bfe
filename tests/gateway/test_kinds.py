"""Agents of one harness are told apart by how their system prompts begin."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.body import BodyError, decode
from saga.gateway.kinds import BEGINNING, fingerprint

CODER = "You are a careful engineer. You read the code before you change it, and you run the tests."
CRITIC = "You are a reviewer. You find what is wrong with a change, and say how it could be better."


def told(**body: Any) -> str | None:
    return fingerprint(decode(msgspec.json.encode(body)))


def chat(system: str, *more: str) -> str | None:
    messages = [{"role": "system", "content": system}]
    return told(messages=[*messages, *({"role": "user", "content": text} for text in more)])


def test_the_same_prompt_is_one_kind_whatever_is_asked() -> None:
    assert chat(CODER, "one") == chat(CODER, "another", "and more") is not None
    assert chat(CODER) != chat(CRITIC)


def test_what_comes_late_in_a_prompt_makes_no_kind() -> None:
    long = CODER * 20
    assert len(long) > BEGINNING
    assert chat(f"{long} Today is Monday.") == chat(f"{long} Today is Tuesday.")


def test_every_api_tells_it() -> None:
    kinds = [
        chat(CODER),
        told(messages=[{"role": "developer", "content": CODER}]),
        told(system=CODER, messages=[]),
        told(system=[{"type": "text", "text": CODER, "cache_control": {"type": "ephemeral"}}]),
        told(instructions=CODER, input="x"),
    ]
    assert None not in kinds
    assert told(system=[{"type": "text", "text": CODER}]) == kinds[3], "markers make no difference"


def test_who_has_no_prompt_has_no_kind() -> None:
    assert chat("Be terse.") is None
    assert told(messages=[{"role": "user", "content": CODER}]) is None
    assert told(messages=[]) is None
    asked = [{"role": "system", "content": CODER}]
    assert told(system=None, messages=asked) == told(system="", messages=asked) == chat(CODER)
    assert told(messages=[7, "x"]) is None
    assert told(input=CODER) is None


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_body_has_one_or_none(data: bytes) -> None:
    try:
        fields = decode(data)
    except BodyError:
        return
    found = fingerprint(fields)
    assert found is None or len(found) == 8
