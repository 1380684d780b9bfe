"""Which agents are of one kind: those of one harness whose system prompts begin alike."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Raw, Struct

from saga.gateway.body import Fields
from saga.gateway.lineage import canonical

BEGINNING: Final = 1_024
"""Bytes of a system prompt that tell its kind: what changes from task to task (paths, dates, files)
mostly comes later."""
EMPTY: Final = (b"null", b'""', b"[]")
SHORTEST: Final = 64
"""A shorter prompt is no agent's own."""


class _Message(Struct):
    role: str | None = None


_MESSAGE: Final = msgspec.json.Decoder(_Message)


def fingerprint(fields: Fields) -> str | None:
    """Of the beginning of the system prompt, whichever way the API tells it; None without one."""
    told = _system_prompt(fields)
    text = canonical(told)[:BEGINNING] if told else b""
    return blake2b(text, digest_size=4).hexdigest() if len(text) >= SHORTEST else None


def _system_prompt(fields: Fields) -> Raw | None:
    for told in (fields.system, fields.instructions):
        if told and bytes(told) not in EMPTY:
            return told
    first = fields.messages[0] if fields.messages else None
    return first if first is not None and _role(first) in ("system", "developer") else None


def _role(message: Raw) -> str | None:
    try:
        return _MESSAGE.decode(message).role
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
