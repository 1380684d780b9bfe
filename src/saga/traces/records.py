"""Decoding one record, with errors that name the field, its value and what is allowed."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from saga.traces.base import RecordError

MAX_TOKENS = 1 << 31
MAX_SECONDS = 1e11

Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
PromptTokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
"""At most some thousand years, so that every time fits an int64 of microseconds."""
Milliseconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS * 1000)]

T = TypeVar("T")

_AT_FIELD = re.compile(r"^(?P<expected>.*) - at `\$\.?(?P<where>[^`]+)`$")
_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def decode(text: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """One JSON record. Raises RecordError for whatever the decoder refuses."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        message = str(error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise RecordError("not valid JSON: nested too deeply") from None
    try:
        raise RecordError(_explain(message, msgspec.json.decode(text)))
    except msgspec.DecodeError:  # a number out of range cannot be shown either
        raise RecordError(message) from None


def from_strings(fields: dict[str, Any], form: type[T]) -> T:
    """One record whose numbers may be strings. Raises RecordError like ``decode``."""
    try:
        return msgspec.convert(fields, form, strict=False)
    except msgspec.ValidationError as error:
        raise RecordError(_explain(str(error), fields)) from None


def _explain(message: str, record: Any) -> str:
    """msgspec tells where and what it expected; add what is there."""
    refused = _AT_FIELD.match(message)
    if refused is None:
        return message
    value = record
    for index, key in _PART.findall(refused["where"]):
        value = value[int(index)] if index else value[key]
    found = "" if isinstance(value, dict | list) else f" is {value!r:.40}"
    return f"{refused['where']}{found}: {refused['expected']}"
