"""What engines publish of their KV, read from the wire.

A message has three frames: a topic, which says nothing here, a sequence number (8 bytes, big
endian), and msgpack: ``[time, [event, ...], ...]``. vLLM and SGLang publish events of blocks, as
maps with a ``type`` or, in older releases, as arrays that begin with it. SAGA's own engines publish
events of sessions: ``[kind, session, tokens]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from saga import wire

SESSION_KINDS: Final = frozenset(
    {wire.KV_STORED, wire.KV_EVICTED, wire.KV_RETAINED, wire.KV_RELEASED}
)

WHOLE_PREFIX: Final = frozenset(
    {"full_attention", "mla_attention", "sink_full_attention", "unknown", "full"}
)
"""Kinds of KV of which a prefix hit needs every block. A sliding window drops its oldest blocks
all the time, and a recurrent state has only checkpoints: their removals shorten nobody's prefix."""

BlockHash = Annotated[bytes, Meta(max_length=64)] | int
BlockHashes = Annotated[list[BlockHash], Meta(max_length=65_536)]
"""One event's: in vLLM's usual blocks a million tokens."""
T = TypeVar("T")

GPU: Final = frozenset({"GPU", None})
"""Where KV must be to count; older releases do not tell."""


class MalformedError(ValueError):
    """Not what engines publish."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks in a row became resident, each after the one before, the first after ``parent``."""

    hashes: BlockHashes
    parent: BlockHash | None
    block_size: int
    group: int | None
    session: str | None
    """What the engine calls the session whose request made them."""


@dataclass(frozen=True, slots=True)
class Removed:
    hashes: BlockHashes
    group: int | None


@dataclass(frozen=True, slots=True)
class Cleared:
    """All blocks are gone."""


@dataclass(frozen=True, slots=True)
class SessionKV:
    """SAGA's own word on a session, by the gateway's name."""

    kind: str
    session: str
    tokens: int


KvEvent = Stored | Removed | Cleared | SessionKV


class _Batch(Struct, array_like=True):
    at: float
    events: list[Raw]


class _Kind(Struct):
    type: str


class _Stored(Struct):
    block_hashes: BlockHashes
    block_size: Annotated[int, Meta(gt=0, le=1 << 20)]
    parent_block_hash: BlockHash | None = None
    medium: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    component_type: str | None = None
    """What SGLang calls the same."""
    session_id: str | None = None


class _Removed(Struct):
    block_hashes: BlockHashes
    medium: str | None = None
    group_idx: int | None = None


class _Session(Struct, array_like=True):
    kind: str
    session: str
    tokens: Annotated[int, Meta(ge=0)]


_ARRAYS: Final = {
    "BlockStored": (
        *("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id"),
        *("medium", "lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind"),
    ),
    "BlockRemoved": ("type", "block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": ("type",),
}
"""What stands where in an event that is an array. Fields were added at the end."""


def split(frames: Sequence[bytes]) -> tuple[int, list[Raw]]:
    """Sequence number and undecoded events of a message. Raises MalformedError."""
    if len(frames) != 3 or len(frames[1]) != 8:
        raise MalformedError("a message is a topic, 8 bytes and a batch")
    return int.from_bytes(frames[1], "big"), _decode(frames[2], _Batch).events


def read(event: Raw) -> KvEvent | None:
    """One event; None if it says nothing of a GPU's KV. Raises MalformedError."""
    if not _is_array(event):
        return _of_blocks(event)
    parts = _decode(event, list[Raw])
    kind = _decode(parts[0], str) if parts else ""
    if kind in SESSION_KINDS:
        told = _decode(event, _Session)
        return SessionKV(told.kind, told.session, told.tokens)
    named = zip(_ARRAYS.get(kind, ("type",)), parts, strict=False)
    return _of_blocks(msgspec.msgpack.encode(dict(named)))


def _of_blocks(event: Raw | bytes) -> KvEvent | None:
    match _decode(event, _Kind).type:
        case "BlockStored":
            new = _decode(event, _Stored)
            kind = new.kv_cache_spec_kind or new.component_type or "full"
            if new.medium not in GPU or kind not in WHOLE_PREFIX:
                return None
            return Stored(
                new.block_hashes,
                new.parent_block_hash,
                new.block_size,
                new.group_idx,
                new.session_id,
            )
        case "BlockRemoved":
            gone = _decode(event, _Removed)
            return Removed(gone.block_hashes, gone.group_idx) if gone.medium in GPU else None
        case "AllBlocksCleared":
            return Cleared()
    return None


def _is_array(value: Raw) -> bool:
    """By the first byte, as msgpack has it."""
    first = memoryview(value)[0]
    return 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)


def _decode(data: Raw | bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise MalformedError("not an event that an engine publishes") from None
