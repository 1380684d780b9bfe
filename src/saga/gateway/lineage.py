"""Tells sessions apart by what they say, for clients that send no id.

A client repeats its conversation with every request, so a session is a growing chain of messages.
Every prefix of every chain is remembered by its hash, and a request belongs to the session that
holds its longest known prefix, if it continues it:

- all of the session's messages, the model's answer, and more: the next step;
- all of them and nothing more: the same step again;
- all but the last one, then the answer: the next step of a client that edits its last message.

- the result of a tool call that the session's last answer made, whatever is said around it: the
  next step of an agent to which the conversation was handed over, or of one that rewrote it.

Everything else begins a session. It is a fork of the one found if it shares more with it than the
messages of that session's first request: those come from the client, and many conversations begin
with the same ones, but what follows comes from that session. System messages are no part of a
chain; chains with different ones are strangers.

It is a guess that heals itself: a wrong one lasts for a step. A client that rewrites its history
(a summary in place of it) begins a session, unless the result of a call is still in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from saga.gateway.memory import TenantLru

MAX_MESSAGES: Final = 20_000
"""A longer chain is not followed."""
HASHES_PER_SESSION: Final = 8
"""Remembered on average; the ones used least recently are forgotten."""
MAX_RESULTS: Final = 16
"""Items at the end of a request in which the result of a call is looked for."""
REPEAT_US: Final = 1_800_000_000
"""Within it a repeated first request is a retry, after it a new conversation. Clients of the OpenAI
API wait for 10 minutes before they try again."""

_RESULT_OF: Final = re.compile(rb'"(?:tool_call_id|tool_use_id|call_id)"\s*:\s*"([^"\\]{1,128})"')
_ID_ENDS: Final = b'_id"'
_MARKER: Final = b'"cache_control"'
_MARKED: Final = 128
_CACHE_CONTROL: Final = re.compile(
    rb',\s*"cache_control"\s*:\s*(?:null|\{[^{}]*\})'
    rb'|"cache_control"\s*:\s*(?:null|\{[^{}]*\})\s*,?\s*'
)
_LONE_TEXT: Final = re.compile(
    rb'(\{\s*(?:"role"\s*:\s*"\w+"\s*,\s*)?"content"\s*:\s*)'
    rb'\[\s*\{\s*"type"\s*:\s*"text"\s*,\s*"text"\s*:\s*("(?:[^"\\]++|\\.)*+")\s*\}\s*\]'
)


class Followed(NamedTuple):
    """The session of a request; ``parent`` is the one it forked from."""

    session: str
    parent: str | None = None


@dataclass(slots=True)
class Chain:
    """What is known of a session, in numbers of messages."""

    base: int
    """Of its first request, or of its parent's: what other conversations may begin with as well."""
    length: int
    seen_us: int
    went_on: bool = False
    """By steps that did not repeat its messages: its opening, said again, begins another one."""


class _Call(NamedTuple):
    """``session`` is empty if two of them made calls with this id: it tells neither."""

    session: str
    length: int
    """Of its chain when it was made."""


class _Speaker(msgspec.Struct):
    role: str | None = None
    type: str | None = None


_SPEAKER: Final = msgspec.json.Decoder(_Speaker)


class Lineages:
    """The chains of all tenants; no tenant's messages lead to another's session."""

    def __init__(self, max_sessions: int, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._chains: TenantLru[str, Chain] = TenantLru(max_sessions)
        self._sessions: TenantLru[int, str] = TenantLru(max_sessions * HASHES_PER_SESSION)
        """By hash of a prefix: the session that held it last."""
        self._calls: TenantLru[bytes, _Call] = TenantLru(max_sessions)

    def follow(
        self,
        tenant: str,
        partition: Sequence[str],
        preamble: Sequence[Raw],
        messages: Sequence[Raw],
        *,
        now_us: int,
        retry: bool = False,
        name: str | None = None,
    ) -> Followed | None:
        """The session of a request; None if its messages tell nothing.

        Only requests of equal ``partition`` and ``preamble`` can be of one session. ``retry``: the
        client says that it asks again. The first session of its kind is called ``name``, if given.
        """
        start = 0
        while start < len(messages) and _speaker(messages[start]).role in ("system", "developer"):
            start += 1
        said = messages[start:]
        if not 0 < len(said) <= MAX_MESSAGES:
            return None
        hashes = _hashes(partition, [*preamble, *messages[:start]], said)
        depth, session, chain = self._longest(tenant, hashes)
        goes_on = chain is not None and _continues(chain, depth, said, now_us, retry)
        if not goes_on and (caller := self._caller(tenant, said)) is not None:
            goes_on, depth = True, 0
            session, chain = caller
        if chain is not None and goes_on:
            if depth < len(said):
                chain.length = len(said)
            chain.seen_us = now_us
            followed = Followed(session)
        else:
            followed = self._begin(tenant, session, chain, depth, len(said), now_us, name)
        self._remember(tenant, hashes, depth, followed.session)
        return followed

    def called(self, tenant: str, session: str, call_id: str) -> None:
        """The session's answer calls a tool."""
        chain = self._chains.get(tenant, session)
        if chain is None:
            return
        key = call_id.encode("utf-8", "surrogatepass")
        before = self._calls.get(tenant, key)
        is_its_own = before is None or before.session == session
        self._calls.put(tenant, key, _Call(session if is_its_own else "", chain.length))

    def _caller(self, tenant: str, said: Sequence[Raw]) -> tuple[str, Chain] | None:
        """The session whose last answer made a call of which a result is at the end."""
        for message in reversed(said[-MAX_RESULTS:]):
            text = bytes(message)
            for call_id in _RESULT_OF.findall(text) if _ID_ENDS in text else ():
                call = self._calls.get(tenant, call_id)
                chain = self._chains.get(tenant, call.session) if call is not None else None
                if call is not None and chain is not None and call.length == chain.length:
                    return call.session, chain
        return None

    def go_on(self, tenant: str, session: str) -> None:
        """The session took a step that does not repeat its conversation."""
        chain = self._chains.get(tenant, session)
        if chain is not None:
            chain.went_on = True

    def forget(self, tenant: str, session: str) -> None:
        """What the session said leads nowhere any more."""
        self._chains.pop(tenant, session)

    def _longest(self, tenant: str, hashes: list[int]) -> tuple[int, str, Chain | None]:
        """The longest known prefix: its number of messages, its session and that one's chain."""
        for depth in range(len(hashes), 0, -1):
            session = self._sessions.get(tenant, hashes[depth - 1])
            if session is not None:
                chain = self._chains.get(tenant, session)
                if chain is not None:
                    return depth, session, chain
        return 0, "", None

    def _begin(
        self,
        tenant: str,
        found: str,
        chain: Chain | None,
        depth: int,
        length: int,
        now_us: int,
        name: str | None,
    ) -> Followed:
        forks = chain is not None and depth > chain.base
        base = chain.base if chain is not None and forks else length
        if name is None or self._chains.get(tenant, name) is not None:
            name = self._new_id()
        self._chains.put(tenant, name, Chain(base, length, now_us))
        return Followed(name, found if forks else None)

    def _remember(self, tenant: str, hashes: list[int], depth: int, session: str) -> None:
        """Prefixes that were known stay with their session, but for the whole of the request."""
        for prefix in hashes[min(depth, len(hashes) - 1) :]:
            self._sessions.put(tenant, prefix, session)


def _continues(chain: Chain, depth: int, said: Sequence[Raw], now_us: int, retry: bool) -> bool:
    """Whether a request with ``depth`` messages of a chain is its next step, or its last again."""
    if depth == len(said):
        opening = depth <= chain.base
        over = opening and (chain.went_on or now_us - chain.seen_us > REPEAT_US)
        return retry or (depth == chain.length and not over)
    if depth == chain.length:
        return depth > chain.base or _by_model(said[depth])
    edited = depth == chain.length - 1 and len(said) > chain.length
    return edited and _by_model(said[chain.length])


def _hashes(
    partition: Sequence[str], preamble: Sequence[Raw], messages: Sequence[Raw]
) -> list[int]:
    """One for each prefix of the messages: of the hash before it and the last message.

    Python's own, which is keyed anew in each process and fast: 64 bits tell apart what one tenant
    says, and nothing is looked up across tenants.
    """
    last = hash((*partition, *map(canonical, preamble), None))  # a preamble is no message
    return [last := hash((last, canonical(message))) for message in messages]


def canonical(message: Raw) -> bytes:
    """What stays the same while clients move cache markers from message to message.

    A marker needs a list of blocks to stand in, so that a text may turn into a list of one block.
    """
    text = bytes(message)
    blocks = text.find(b"[", 0, 64) >= 0
    # Beside a plain text, a marker stands at its end: to search long texts takes time.
    if (blocks or _MARKER in text[-_MARKED:]) and _MARKER in text:
        text = _CACHE_CONTROL.sub(b"", text)
    if blocks and (lone := _LONE_TEXT.match(text)):
        text = b"".join((lone[1], lone[2], text[lone.end() :]))
    return text


def _by_model(message: Raw) -> bool:
    """Whether a model wrote it: an answer, or an item of one as the Responses API has them."""
    role, kind = (speaker := _speaker(message)).role, speaker.type
    if role is not None:
        return role == "assistant"
    return kind is not None and not kind.endswith("_output") and not kind.startswith("input_")


def _speaker(message: Raw) -> _Speaker:
    try:
        return _SPEAKER.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Speaker()
