"""Sizes of text, where a trace holds the text itself, and text of a size, where it must."""

from __future__ import annotations

from hashlib import blake2b

CHARS_PER_TOKEN = 4

SIZED_BY_TEXT = f"prompts sized by their text, {CHARS_PER_TOKEN} characters a token"


def tokens_of(num_chars: int) -> int:
    return -(-num_chars // CHARS_PER_TOKEN)


def common_chars(one: str, other: str) -> int:
    """Characters that two texts begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def filler(key: str, tokens: int) -> str:
    """Text of so many tokens, near enough: `` the`` is one in the vocabularies in use. Another
    key gives another beginning, so that no cache takes the one for the other."""
    text = blake2b(key.encode(), digest_size=4).hexdigest() + " the" * tokens
    return text[: tokens * CHARS_PER_TOKEN]
