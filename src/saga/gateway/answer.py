"""What an engine's answer says about itself, read from its bytes as they pass, without parsing it.

The needed fields are found by their names. A quoted name cannot occur inside a JSON string, where
its quotes would be escaped, so that no text of a model is ever mistaken for a field.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

HEAD_BYTES = 4_096
TAIL_BYTES = 16_384
READ_BYTES = 8_192
"""Chunks are looked at together: those of a stream have a token each."""
CARRY_BYTES = 1_280
"""Kept from one look to the next, for names that are cut in two: the longest find."""

_USAGE = b'"usage"'
_EVENT = b"\ndata:"
_COUNT = re.compile(
    rb'"(prompt_tokens|input_tokens|completion_tokens|output_tokens|cached_tokens'
    rb'|cache_read_input_tokens|cache_creation_input_tokens)"\s*:\s*(\d{1,12})\s*[,}]'
)
_MEANS = {
    b"prompt_tokens": "prompt",
    b"input_tokens": "prompt",
    b"completion_tokens": "output",
    b"output_tokens": "output",
    b"cached_tokens": "cached",
    b"cache_read_input_tokens": "cached",
    b"cache_creation_input_tokens": "created",
}
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,256})"')
_CALL = rb'"type"\s*:\s*"(?:tool_use|function_call)"'
_NAME = rb'"name"\s*:\s*"([^"\\]{1,128})"'
_CALL_ID = rb'"(?:call_)?id"\s*:\s*"[^"\\]{1,128}"'
_TOOL = re.compile(
    rb"(?:" + _CALL_ID + rb'[^{}]{0,256}?)?"function"\s*:\s*\{[^{}]{0,512}?' + _NAME  # chat
    + rb"|" + _CALL + rb"[^{}]{0,512}?" + _NAME  # Messages, Responses
    + rb"|(?:" + _CALL_ID + rb"\s*,\s*)?" + _NAME + rb"[^{}]{0,512}?" + _CALL
)  # fmt: skip
_IDS = re.compile(rb'"((?:call_)?id)"\s*:\s*"([^"\\]{1,128})"')


class Usage(NamedTuple):
    """Token counts are None where the answer does not say."""

    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    tool: str | None
    """The first that is called."""
    call_id: str | None
    """Of that call: its result will come with it."""
    response_id: str | None


class AnswerReader:
    """Is fed the chunks of one answer and then asked what they said.

    ``anthropic``: its ``input_tokens`` do not contain the cached ones. O(1) memory.
    """

    __slots__ = (
        "_anthropic", "_call_id", "_carry", "_edge", "_head", "_num_events", "_tail", "_tail_size",
        "_tool", "_unread", "_unread_size"
    )  # fmt: skip

    def __init__(self, *, anthropic: bool = False) -> None:
        self._anthropic = anthropic
        self._unread: list[bytes] = []
        self._unread_size = 0
        self._head = b""
        self._tail: deque[bytes] = deque()
        """The last pieces, ``TAIL_BYTES`` of them or more."""
        self._tail_size = 0
        self._carry = b""
        self._edge = b"\n"
        """The last bytes, in which a further event may have begun."""
        self._tool: str | None = None
        self._call_id: str | None = None
        self._num_events = 0

    def feed(self, chunk: bytes) -> None:
        self._unread.append(chunk)
        self._unread_size += len(chunk)
        if self._unread_size >= READ_BYTES:
            self._read()

    def _read(self) -> None:
        chunk = b"".join(self._unread)
        self._unread.clear()
        self._unread_size = 0
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
        self._tail.append(chunk)
        self._tail_size += len(chunk)
        while self._tail_size - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_size -= len(self._tail.popleft())
        text = self._edge + chunk
        self._num_events += text.count(_EVENT)
        self._edge = text[1 - len(_EVENT) :]
        if self._tool is None:
            self._look_for_tool(chunk)

    def _look_for_tool(self, chunk: bytes) -> None:
        text = self._carry + chunk
        self._carry = text[-CARRY_BYTES:]
        if b"tool_use" in text or b'"function' in text:
            found = _TOOL.search(text)
            if found is not None:
                name = next(group for group in found.groups() if group is not None)
                self._tool = name.decode("utf-8", "replace")
                ids = dict(_IDS.findall(found[0]))
                call_id = ids.get(b"call_id") or ids.get(b"id")
                self._call_id = None if call_id is None else call_id.decode("utf-8", "replace")

    def usage(self) -> Usage:
        """What the answer said, at its end."""
        self._read()
        tail = b"".join(self._tail)[-TAIL_BYTES:]
        text = _from_usage(self._head)
        if len(tail) > len(self._head):  # a number is none that is cut off between the two
            text += b"\0" + tail[max(0, tail.rfind(_USAGE)) :]
        told = {_MEANS[name]: int(number) for name, number in _COUNT.findall(text)}
        prompt, output, cached = told.get("prompt"), told.get("output"), told.get("cached")
        if self._anthropic and prompt is not None:
            prompt += (cached or 0) + told.get("created", 0)
        if output is None and self._num_events:
            output = max(1, self._num_events - 2)  # about one event per token, and two for the ends
        response_id = _ID.search(self._head)
        return Usage(
            prompt_tokens=prompt,
            output_tokens=output,
            cached_tokens=cached,
            tool=self._tool,
            call_id=self._call_id,
            response_id=None if response_id is None else response_id[1].decode("utf-8", "replace"),
        )


def _from_usage(text: bytes) -> bytes:
    at = text.find(_USAGE)
    return text[at:] if at >= 0 else b""
