"""A few tiny requests to an engine, as the gateway would send them, and what comes of them."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import string
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from saga import wire
from saga.clock import MonotonicClock
from saga.gateway.answer import AnswerReader, Usage
from saga.gateway.kv_events import KvEvents
from saga.gateway.kv_feed import KvNews
from saga.gateway.probe import CONTROL, HINTS, EngineInfo
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

JOIN_S: Final = 0.3
"""For a subscription to reach its publisher, about which ZeroMQ says nothing."""
EVENTS_S: Final = 2.0
"""For an event to come after an answer."""
USUAL_BLOCK: Final = 64
"""Tokens; no smaller than most engines' blocks, of which only whole ones can be cached."""
MAX_WORDS: Final = 4_000
ANSWER_LIMIT: Final = 1024 * 1024
"""Bytes of an answer of one token."""

_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = "/v1/completions"
_ENGINE: Final = "engine"


class RefusedError(Exception):
    """The engine answered a request with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"it answers {status}: {text}" if text else f"it answers {status}")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """None, wherever it is: that could not be found out."""

    api: str
    whole: Usage
    """What an answer in one piece says ..."""
    streamed: Usage | None
    """... and the stream of an answer to the same prompt, when asked for its usage."""
    num_events: int | None
    """Messages from its publishers."""
    is_named: bool | None
    """Whether events name the session."""
    is_known: bool | None
    """Whether its control route knows the session."""


async def try_out(
    upstream: Upstream,
    url: str,
    api_key: str | None,
    info: EngineInfo,
    *,
    block_size: int | None,
    timeouts: Timeouts,
    events_s: float = EVENTS_S,
) -> Trial:
    """Two requests for one token each, one more if no KV event came of these.

    Raises RefusedError if none is answered, and UpstreamError.
    """
    session = _Session(upstream, url, api_key, info, timeouts)
    events = KvEvents(session.heard_of, session.hear, MonotonicClock())
    events.follow(_ENGINE, info.kv_event_endpoints)
    num_words = min(MAX_WORDS, 2 * (block_size or USUAL_BLOCK) + 32)
    try:
        if info.kv_event_endpoints:
            await asyncio.sleep(JOIN_S)
        prompt = _prompt(num_words)
        api, whole = await session.first(prompt)
        streamed = await session.streamed(api, prompt)
        if info.kv_event_endpoints and not await _heard(events, session, events_s):
            with suppress(RefusedError):  # the subscription may have come too late for the others
                await session.ask(api, _prompt(num_words))
                await _heard(events, session, events_s)
        is_known = await session.is_known() if CONTROL in info.capabilities else None
        counts = events.counts(_ENGINE)
    finally:
        await events.stop()
    return Trial(
        api=api,
        whole=whole,
        streamed=streamed,
        num_events=counts["messages"] if info.kv_event_endpoints else None,
        is_named=session.is_named or (False if counts["stored"] else None),
        is_known=is_known,
    )


class _Session:
    """The session to which the requests belong."""

    def __init__(
        self,
        upstream: Upstream,
        url: str,
        api_key: str | None,
        info: EngineInfo,
        timeouts: Timeouts,
    ) -> None:
        self.name = f"saga-doctor/{secrets.token_hex(8)}"
        self.is_named = False
        self._upstream = upstream
        self._url = url
        self._info = info
        self._timeouts = timeouts
        self._headers = [
            ("content-type", "application/json"),
            (wire.ENGINE_SESSION_HEADER, self.name),
        ]
        if api_key is not None:
            self._headers.append(("authorization", f"Bearer {api_key}"))

    async def first(self, prompt: str) -> tuple[str, Usage]:
        """The API that answers, and what the answer says."""
        try:
            return _CHAT, await self.ask(_CHAT, prompt)
        except RefusedError as error:
            if error.status in (401, 403, 429) or error.status >= 500:
                raise
            with_template = error  # a model without a chat template is no worse for it
        try:
            return _COMPLETIONS, await self.ask(_COMPLETIONS, prompt)
        except RefusedError:
            raise with_template from None

    async def streamed(self, api: str, prompt: str) -> Usage | None:
        try:
            return await self.ask(api, prompt, stream=True, stream_options={"include_usage": True})
        except RefusedError:
            return None

    async def ask(self, api: str, prompt: str, **more: Any) -> Usage:
        """One token. Raises RefusedError and UpstreamError."""
        body: dict[str, Any] = {"model": self._info.models[0], "max_tokens": 1, **more}
        if api == _CHAT:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if HINTS in self._info.capabilities:
            body[wire.HINTS_FIELD] = {wire.HINT_SESSION: self.name}
        elif self._info.kind == "sglang":
            body[wire.SESSION_FIELD] = self.name
        status, answer = await self._post(api, body)
        if status != 200:
            raise RefusedError(status, _said(answer))
        reader = AnswerReader()
        reader.feed(answer)
        return reader.usage()

    async def is_known(self) -> bool | None:
        """Whether the engine knows the session by its hints; it is let go of then."""
        about = {"session": self.name}
        try:
            status, _ = await self._post(f"{wire.CONTROL}/stats", about)
            await self._post(f"{wire.CONTROL}/release", about)
        except UpstreamError:
            return None
        return status == 200

    async def _post(self, path: str, body: Any) -> tuple[int, bytes]:
        data = msgspec.json.encode(body)
        response = await self._upstream.send(
            self._url, "POST", path, self._headers, data, timeouts=self._timeouts
        )
        return response.status, await response.read(ANSWER_LIMIT)

    # ---- told of KV events

    def heard_of(self, name: str) -> str | None:
        if name != self.name:
            return None
        self.is_named = True
        return name

    def hear(self, engine: str, news: KvNews) -> None:
        self.is_named |= any(held.session == self.name for held in news.held)


async def _heard(events: KvEvents, session: _Session, seconds: float) -> bool:
    """Whether events come; returns at once when one names the session."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not session.is_named and loop.time() < deadline:
        await asyncio.sleep(0.02)
    return bool(events.counts(_ENGINE)["messages"])


def _prompt(num_words: int) -> str:
    """No engine has seen it before; at least one token for each word."""
    letters = itertools.islice(itertools.cycle(string.ascii_lowercase), num_words)
    return f"{secrets.token_hex(8)} {' '.join(letters)}"


def _said(answer: bytes) -> str:
    """The reason in an error, as OpenAI, vLLM, SGLang and FastAPI have it."""
    try:
        document = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""
    while isinstance(document, dict):
        document = next((document[k] for k in ("error", "message", "detail") if k in document), "")
    return document if isinstance(document, str) else ""
