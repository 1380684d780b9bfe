"""Emulated tokens: what a conversation is as tokens, and what the engine answers.

A token is four bytes. A prompt is rendered as chat templates do it: each turn stands behind a token
that names its role and before one that ends it. Every part of a turn begins with a new token, so
that an answer is the same tokens when the next prompt repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b, shake_128
from typing import Literal

TOKEN_BYTES = 4
_ROLES = {"system": b"\x01sys", "user": b"\x01usr", "assistant": b"\x01ast", "tool": b"\x01tol"}
_END = b"\x02end"
_CALL = b"\x03cal"
_WORDS = tuple(a + b + c for a in "bdfghjklmnprstvz" for b in "aeio" for c in "klnr")
"""With the space or full stop behind it, a word is one token; one for each value of a byte."""
ARGUMENTS = "{}"
"""Of every tool call that the engine makes."""
SHORTEST, LONGEST = 100, 299
"""Tokens of an answer whose length nobody asked for."""

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says, in parts: texts and calls."""

    role: Role
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A rendered prompt, in whole tokens."""

    text: bytes
    shared_tokens: int = 0
    """The tools and the system turns that it begins with: what many sessions have in common."""
    tail: bytes = b""
    """The last bytes of a raw prompt, too few for a token: the answer's first token begins here."""
    salt: str = ""
    """Prompts with different salts share nothing."""

    @property
    def num_tokens(self) -> int:
        return len(self.text) // TOKEN_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the engine will say; its text is ASCII."""

    text: str
    tool: str | None
    """The tool it calls, after the text."""
    finish: Finish
    num_tokens: int
    tokens: bytes

    def upto(self, num_tokens: int) -> str:
        """The part of the text that the first ``num_tokens`` of the answer bring."""
        lead = TOKEN_BYTES * self._text_tokens - len(self.text)
        return self.text[: max(0, TOKEN_BYTES * num_tokens - lead)]

    @property
    def _text_tokens(self) -> int:
        return -(-len(self.text) // TOKEN_BYTES)

    @property
    def turn(self) -> Turn:
        """The answer as the next prompt repeats it."""
        parts = [self.text.encode()] if self.text else []
        if self.tool is not None:
            parts.append(call_part(self.tool, ARGUMENTS))
        return Turn("assistant", tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a request wants its answer."""

    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    output_tokens: int | None = None
    """The exact length, if ``max_tokens`` allows it and a tool call fits in it."""
    tool: str | None = None


def call_part(name: str, arguments: str) -> bytes:
    """A tool call as part of an assistant's turn."""
    return _CALL + _bytes(name) + b"\0" + _bytes(arguments)


def text_part(text: str) -> bytes:
    """A text as part of a turn."""
    return _bytes(text)


def render(turns: Iterable[Turn], *, salt: str = "") -> Prompt:
    """The prompt that lets the assistant speak next. Consecutive turns of its own are one turn."""
    pieces: list[bytes] = []
    shared: int | None = None
    role: Role | None = None
    for turn in turns:
        if role is None or turn.role != role or role != "assistant":
            if role is not None:
                pieces.append(_END)
            if turn.role != "system" and shared is None:
                shared = sum(map(len, pieces)) // TOKEN_BYTES
            pieces.append(_ROLES[turn.role])
            role = turn.role
        pieces.extend(map(_pad, turn.parts))
    pieces += [_END, _ROLES["assistant"]]
    return Prompt(text=b"".join(pieces), shared_tokens=shared or 0, salt=salt)


def raw_prompt(text: bytes, *, salt: str = "") -> Prompt:
    """A prompt without turns. Bytes beyond whole tokens go into the answer's first token, so that a
    prompt that repeats this one and its answer is the same tokens."""
    whole = len(text) - len(text) % TOKEN_BYTES
    if not whole:
        return Prompt(text=_pad(text) or bytes(TOKEN_BYTES), salt=salt)
    return Prompt(text=text[:whole], tail=text[whole:], salt=salt)


def plan_answer(prompt: Prompt, wish: Wish, room: int) -> Answer:
    """The answer to the prompt, always the same one; at most ``room`` tokens, which is at least 1.

    A tool call for which there is no room is left out.
    """
    seed = blake2b(prompt.text, digest_size=16, key=_bytes(prompt.salt)[:64]).digest()
    limit = room if wish.max_tokens is None else min(room, wish.max_tokens)
    natural = SHORTEST + int.from_bytes(seed) % (LONGEST + 1 - SHORTEST)
    wanted = max(natural, wish.min_tokens)
    if wish.output_tokens is not None:
        wanted = wish.output_tokens
    elif wish.ignore_eos:
        wanted = limit + 1
    tool = wish.tool
    call = b"" if tool is None else _pad(call_part(tool, ARGUMENTS))
    if len(call) // TOKEN_BYTES > limit:
        tool, call = None, b""
    length = min(limit, max(wanted, len(call) // TOKEN_BYTES))
    text = _babble(seed, length - len(call) // TOKEN_BYTES)[len(prompt.tail) :]
    finish: Finish = "tool" if tool is not None else "length" if wanted > limit else "stop"
    tokens = (prompt.tail + text.encode() if text else b"") + call
    return Answer(text=text, tool=tool, finish=finish, num_tokens=length, tokens=tokens)


def token_ids(prompt: Prompt) -> list[int]:
    """One number for each token."""
    text = prompt.text
    return [
        int.from_bytes(text[at : at + TOKEN_BYTES], "big")
        for at in range(0, len(text), TOKEN_BYTES)
    ]


def from_token_ids(ids: Iterable[int]) -> bytes:
    """The text of tokens; the inverse of ``token_ids`` for numbers below 2**32."""
    return b"".join((number % (1 << 32)).to_bytes(TOKEN_BYTES, "big") for number in ids)


def _babble(seed: bytes, num_tokens: int) -> str:
    """Pseudo-words, one token each."""
    if num_tokens == 0:
        return ""
    return " ".join(_WORDS[value] for value in shake_128(seed).digest(num_tokens)) + "."


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _pad(part: bytes) -> bytes:
    return part + bytes(-len(part) % TOKEN_BYTES)
