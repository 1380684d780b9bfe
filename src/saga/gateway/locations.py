"""Reads values out of requests at places written as text.

A *location* is one of

- ``header:NAME``, or ``header:NAME.key.key`` for a header that holds JSON, plain or in base64url;
- ``body:FIELD.key.key``; an object on the way may also be written as a string;
- ``baggage:KEY`` and ``trace:id``, of the W3C headers ``baggage`` and ``traceparent``;
- ``vendor:session``, any ``x-<vendor>-session-id`` header with a plausible value.

A *condition* is a location, which must have a value there, or ``LOCATION=word``, whose value must
contain the word in any case. What cannot be read counts as absent.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote

from msgspec import Raw

from saga.gateway import body as bodies
from saga.gateway.body import BodyError, Fields, Scalar

MAX_ID: Final = 256
"""Characters; a longer id is ignored, since a cut one could be another's."""
MAX_HEADER: Final = 16_384
"""Characters of a header that holds more than one value; a longer one is ignored."""
MIN_PRIORITY: Final = 0.1
MAX_PRIORITY: Final = 10.0
"""Of workflows: nobody holds up its own for ever, nor jumps its own queue at will."""

_VENDOR: Final = re.compile(r"x-[a-z0-9-]+-session-id")
_PLAUSIBLE: Final = re.compile(r"[A-Za-z0-9_.:-]{8,}")
_DECIMAL: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_TRACE: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
HEADERS: Final = {"header": "", "baggage": "baggage", "trace": "traceparent"}
"""Kinds of locations that are in one header, and in which; empty: the one named."""
DECODED: Final = frozenset(Fields.__struct_fields__) - {"body", "messages", "model", "stream"}
"""Body fields that are there as ``Raw``; others are searched for."""


class Request(NamedTuple):
    headers: Mapping[str, str]
    """Names are lower case."""
    fields: Fields


Reader = Callable[[Request], Scalar]
Condition = Callable[[Request], bool]


def reader(location: str) -> Reader:
    """What reads the value at a location; ValueError if it is not one."""
    kind, _, path = location.partition(":")
    name, *keys = path.split(".")
    if kind == "header" and name and all(keys):
        name = name.lower()
        return _json_header(name, keys) if keys else lambda request: request.headers.get(name)
    if kind == "body" and name and all(keys):
        return _body(name, keys)
    if kind == "baggage" and path:
        return lambda request: _baggage(request.headers.get(HEADERS["baggage"]), path)
    if location == "trace:id":
        return lambda request: _trace(request.headers.get(HEADERS["trace"]))
    if location == "vendor:session":
        return lambda request: _vendor(request.headers)
    raise ValueError(f"not a location: {location!r}; write header:NAME or body:FIELD.FIELD")


def condition(text: str) -> Condition:
    """What tells whether a condition holds; ValueError if it is not one."""
    location, _, word = text.partition("=")
    read = reader(location)

    def holds(request: Request) -> bool:
        value = read(request)
        return value is not None and word.lower() in str(value).lower()

    return holds


def identifier(value: Scalar) -> str | None:
    """The value if it can be an id: a short text without control or broken characters."""
    if not isinstance(value, str):
        return None
    value = value.strip()
    fits = 0 < len(value) <= MAX_ID and value.isprintable() and "\ufffd" not in value
    return value if fits else None


def flag(value: Scalar) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() in ("true", "1"))


def count(value: Scalar) -> int | None:
    """A number that is not negative, also as a text of digits."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.isascii() and value.isdigit() and len(value) <= 15 else None
    return value if type(value) is int and 0 <= value < 10**15 else None


def priority(value: Scalar) -> float | None:
    """A number from ``MIN_PRIORITY`` to ``MAX_PRIORITY``, also as a decimal text."""
    if isinstance(value, str):
        value = value.strip()
        value = float(value) if _DECIMAL.fullmatch(value) else None
    if value is None or isinstance(value, bool):
        return None
    return float(value) if MIN_PRIORITY <= value <= MAX_PRIORITY else None


def _json_header(name: str, keys: Sequence[str]) -> Reader:
    def read(request: Request) -> Scalar:
        text = request.headers.get(name)
        return None if text is None else bodies.scalar(_descend(_unpacked(text), keys))

    return read


def _body(name: str, keys: Sequence[str]) -> Reader:
    if name in DECODED:

        def read(request: Request) -> Scalar:
            raw: Raw = getattr(request.fields, name)
            return bodies.scalar(_descend(raw, keys)) if raw else None

        return read

    def search(request: Request) -> Scalar:
        try:
            whole = bodies.top_level(bytes(request.fields.body))
        except BodyError:
            return None
        return bodies.scalar(_descend(whole.get(name, Raw()), keys))

    return search


def _descend(raw: Raw, keys: Sequence[str]) -> Raw:
    for key in keys:
        raw = bodies.members(raw).get(key, Raw())
    return raw


def _unpacked(text: str) -> Raw:
    """The JSON of a header, which is plain or base64url, with or without padding."""
    if len(text) > MAX_HEADER:
        return Raw()
    if text.lstrip().startswith("{"):
        return Raw(text.encode("utf-8", "replace"))
    try:
        return Raw(base64.urlsafe_b64decode(text.strip().rstrip("=") + "=="))
    except (ValueError, binascii.Error):
        return Raw()


def _baggage(text: str | None, key: str) -> str | None:
    """Source: W3C Baggage, ``key=value;property,key=value`` with percent-encoded values."""
    if text is None or len(text) > MAX_HEADER:
        return None
    for entry in text.split(","):
        name, equals, value = entry.partition(";")[0].partition("=")
        if equals and name.strip() == key:
            return unquote(value.strip())
    return None


def _trace(text: str | None) -> str | None:
    """Source: W3C Trace Context; a trace id of zeros is invalid."""
    found = None if text is None else _TRACE.fullmatch(text.strip())
    return None if found is None else found[1]


def _vendor(headers: Mapping[str, str]) -> str | None:
    found = [
        name
        for name, value in headers.items()
        if name.endswith("-session-id")
        and _VENDOR.fullmatch(name)
        and "parent" not in name
        and _PLAUSIBLE.fullmatch(value.strip())
    ]
    return headers[min(found)] if found else None
