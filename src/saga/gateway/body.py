"""Reads the few fields of a request's body that the gateway needs, and edits bodies as bytes.

Engines judge bodies; the gateway refuses only what it cannot route. Everything else stays as the
bytes that came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

MAX_OBJECT: Final = 65_536
"""Bytes of an object that only tells identity; a larger one counts as absent."""
MAX_SCALAR: Final = 4_096
MAX_COMMAS: Final = 1_000_000
"""Bounds the parts into which one body is taken apart, as each costs far more than its bytes."""

Scalar = str | bool | int | float | None

T = TypeVar("T")

_ABSENT: Final = Raw()
_OBJECT_OPENS: Final = re.compile(rb"\s*\{")
_OBJECT_ENDS: Final = re.compile(rb"\s*\}")
_PLACE: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_LONE_SURROGATE: Final = re.compile(
    rb"(?<!\\)((?:\\\\)*+)\\u[dD]"
    rb"(?:[89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F]..)"
)
_MAX_MENDED: Final = 1_000
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class BodyError(ValueError):
    """The body cannot be served; ``param`` names the field at fault, where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class Fields(msgspec.Struct, kw_only=True, gc=False):
    """What a body says. What only engines judge, or only identity needs, is undecoded.

    A ``Raw`` that is absent is empty, and false.
    """

    model: str | None = None
    stream: bool | None = None
    messages: list[Raw] = []
    """Empty also if they are no list, or of too many parts."""
    input: Raw = _ABSENT
    prompt: Raw = _ABSENT
    system: Raw = _ABSENT
    instructions: Raw = _ABSENT
    max_tokens: Raw = _ABSENT
    max_completion_tokens: Raw = _ABSENT
    max_output_tokens: Raw = _ABSENT
    metadata: Raw = _ABSENT
    session_id: Raw = _ABSENT
    rid: Raw = _ABSENT
    session_params: Raw = _ABSENT
    conversation: Raw = _ABSENT
    previous_response_id: Raw = _ABSENT
    prompt_cache_key: Raw = _ABSENT
    saga: Raw = _ABSENT
    vllm_xargs: Raw = _ABSENT
    agent_hint: Raw = _ABSENT
    nvext: Raw = _ABSENT
    body: Raw = _ABSENT
    """The whole of it, whatever the client calls a field of this name."""

    @property
    def output_limit(self) -> int | None:
        """The number of tokens asked for at most; None if not told as a positive integer."""
        for raw in (self.max_completion_tokens, self.max_output_tokens, self.max_tokens):
            value = scalar(raw)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None


class _NotTakenApart(Fields, kw_only=True, gc=False):
    messages: Raw = _ABSENT  # type: ignore[assignment]  # forgotten before anybody sees it


_FIELDS: Final = msgspec.json.Decoder(Fields)
_LESS: Final = msgspec.json.Decoder(_NotTakenApart)
_SCALAR: Final[msgspec.json.Decoder[Scalar]] = msgspec.json.Decoder(Scalar)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_MEMBERS_OR_TEXT: Final = msgspec.json.Decoder(dict[str, Raw] | str)
_ITEMS: Final = msgspec.json.Decoder(list[Raw])


def decode(body: bytes) -> Fields:
    """The fields of a JSON object; BodyError if it is none or cannot be routed."""
    try:
        fields = _fields(body)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        reason = _PLACE.sub("", str(error))
        if place is None or not place[1]:
            raise BodyError(f"the body must be a JSON object: {reason}") from None
        raise BodyError(f"{place[1]}: {reason}", place[1]) from None
    except _UNREADABLE as error:
        # Only msgspec's own words: those of the other errors may quote the body.
        reason = str(error) if isinstance(error, msgspec.MsgspecError) else type(error).__name__
        raise BodyError(f"the body is not valid JSON: {reason}") from None
    fields.body = Raw(body)
    return fields


def _fields(body: bytes) -> Fields:
    if not _too_many_parts(body):
        try:
            return _read(_FIELDS, body)
        except msgspec.ValidationError as error:
            if not str(error).endswith("`$.messages`"):
                raise
    fields: Fields = _read(_LESS, body)
    fields.messages = []
    return fields


def splice(body: bytes, additions: Mapping[str, Any]) -> bytes:
    """The object with more fields in front; the bytes that came stay as they are.

    A field must not be there already, as most parsers let the last one win: see ``without``.
    BodyError if the body does not begin an object.
    """
    opening = _OBJECT_OPENS.match(body)
    if opening is None:
        raise BodyError("the body must be a JSON object")
    if not additions:
        return body
    at = opening.end()
    comma = b"" if _OBJECT_ENDS.match(body, at) else b","
    came = memoryview(body)  # slices of a large body would be copies
    return b"".join((came[:at], msgspec.json.encode(additions)[1:-1], comma, came[at:]))


def without(body: bytes, field: str) -> bytes:
    """The object without one of its fields; the values of the others keep their bytes.

    BodyError if the body is no object or has too many parts to be taken apart.
    """
    fields = top_level(body)
    if field not in fields:
        return body
    del fields[field]
    return msgspec.json.encode(fields)


def top_level(body: bytes) -> dict[str, Raw]:
    """Every field of a body; BodyError as ``without``."""
    if _too_many_parts(body):
        raise BodyError("the body has too many parts")
    try:
        return _read(_MEMBERS, body)
    except _UNREADABLE:
        raise BodyError("the body must be a JSON object") from None


def members(raw: Raw | str) -> dict[str, Raw]:
    """The fields of an object, also of one that is written as a string; empty for all else."""
    if not 0 < len(raw) <= MAX_OBJECT:
        return {}
    try:
        value = _MEMBERS_OR_TEXT.decode(raw)
        return _MEMBERS.decode(value) if isinstance(value, str) else value
    except _UNREADABLE:
        return {}


def scalar(raw: Raw) -> Scalar:
    """A string, number or truth value; None for all else and for what is too long."""
    if not 0 < len(raw) <= MAX_SCALAR:
        return None
    try:
        return _SCALAR.decode(raw)
    except _UNREADABLE:
        return None


def items(raw: Raw) -> list[Raw]:
    """The items of a list, each undecoded; empty for all else and for a list of too many parts."""
    text = bytes(raw)
    if not text or _too_many_parts(text):
        return []
    try:
        return _read(_ITEMS, text)
    except _UNREADABLE:
        return []


def _too_many_parts(text: bytes) -> bool:
    return len(text) > MAX_COMMAS and text.count(b",") > MAX_COMMAS


def _read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decodes also what cuts a character in half, as some clients do when they cut text.

    JSON allows such escapes and engines read them; only what is decoded here is mended.
    """
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:
        mended, count = _LONE_SURROGATE.subn(rb"\1\\ufffd", body, count=_MAX_MENDED)
        if not count:
            raise
        return decoder.decode(mended)
