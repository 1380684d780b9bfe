"""One request to a language model, from its body to the last byte of its answer.

It is held until the scheduler places it, sent to that engine with its body untouched, and its
answer is passed on byte for byte. It ends in exactly one way: finished, rejected, cancelled or
failed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from saga import wire
from saga.gateway import errors
from saga.gateway.answer import AnswerReader, Usage
from saga.gateway.body import Fields
from saga.gateway.errors import Dialect, GatewayError
from saga.gateway.host import LiveRequest, Refused
from saga.gateway.identity import Identity
from saga.gateway.kinds import fingerprint
from saga.gateway.locations import identifier
from saga.gateway.sessions import LiveSession
from saga.gateway.starts import Expected
from saga.gateway.upstream import Response, UpstreamError
from saga.http.exchange import Headers, Reply

if TYPE_CHECKING:
    from saga.gateway.service import Gateway

Outcome = Literal["finished", "rejected", "cancelled", "failed"]

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
BACKOFF_S = 0.1
MAX_ERROR_BYTES = 65_536


class Call(NamedTuple):
    """What a client asked for."""

    api: str
    dialect: Dialect
    path: str
    """With its query."""
    headers: Mapping[str, str]
    body: bytes
    fields: Fields
    tenant: str
    identity: Identity
    engine: str | None = None
    """The only one that can serve it."""


class _Moved(Exception):
    """Its engine was lost before the first byte: it waits for a place again."""


class _Passed(Exception):
    """The client has got the engine's own error."""


class _Again(Exception):
    """Its engine could not serve it, and another try is granted."""


class Relay:
    """Serves one call. ``run`` returns when the answer was sent, and raises the GatewayError that
    the caller is to send if nothing was sent yet."""

    def __init__(self, gateway: Gateway, call: Call, reply: Reply) -> None:
        self.outcome: Outcome = "cancelled"
        self.num_tokens: int | None = None
        """What the engine counted, prompt and output."""
        self._gateway = gateway
        self._host = gateway.host
        self._call = call
        self._reply = reply
        self._streams = bool(call.fields.stream)
        self._session: LiveSession
        self._live: LiveRequest
        self._tells_events = False
        """Whether they said that events follow."""
        self._keepalive: asyncio.Task[None] | None = None
        self._lost: str | None = None
        """Why its engine's work on it ended, when somebody else ended it."""
        self._arrived = 0
        self._expected: Expected | None = None
        """When its engine begins with it, as far as can be told."""
        self._uncached = 0
        self._num_tries = 0
        self._decision = ""

    async def run(self) -> None:
        gateway, call = self._gateway, self._call
        weight = gateway.tenant(call.tenant).weight
        self._session = gateway.sessions.enter(
            call.tenant, weight, call.identity, partial(fingerprint, call.fields)
        )
        tool = self._session.tool
        if wire.STEP_HEADER in call.headers:
            self._session.step = identifier(call.headers[wire.STEP_HEADER])
        gateway.prefetches.arrived(self._session.id)
        self._live = self._arrive()
        self._arrived = self._host.scheduler.state.now
        try:
            usage = await self._serve()
            tool = usage.tool or identifier(call.headers.get(wire.NEXT_TOOL_HEADER))
            self._finish(usage, tool)
        except _Passed:
            self._end("failed", "the engine answered with an error")
        except Refused as refused:
            self._end("rejected", refused.reason)
            if refused.code is not None:
                gateway.sessions.end(self._session.workflow)
            await self._tell_error(_of_refusal(refused))
        except GatewayError as error:
            self._end("rejected" if error.status == 429 else "failed", error.message)
            await self._tell_error(error)
        finally:
            self._stop_keepalive()
            self._host.cancel(self._live)  # does nothing if it has ended otherwise
            gateway.sessions.leave(self._session, tool)

    def _arrive(self) -> LiveRequest:
        call, sessions = self._call, self._gateway.sessions
        tokens = sessions.estimate(self._session, len(call.body), call.fields.model or "")
        expected = call.fields.output_limit
        if expected is not None:
            graph = self._host.scheduler.view.graphs[self._session.workflow.agent_type]
            expected = min(expected, int(graph.output_tokens.value(200.0)))
        name = self._gateway.next_request_id()
        return self._host.arrive(name, self._session.id, tokens, expected, engine=call.engine)

    def _end(self, outcome: Outcome, reason: str) -> None:
        self.outcome = outcome
        self._host.fail(self._live, reason)

    # ---- from the queue to an engine

    async def _serve(self) -> Usage:
        """Has it placed and sent, again if need be, and passes the answer on."""
        if self._streams:
            self._keepalive = asyncio.create_task(self._keep_alive())
        while True:
            await self._wait_for_place()
            try:
                return await self._attempt()
            except _Moved:
                continue
            except _Again as again:
                await self._go_back(str(again))
            except UpstreamError as error:
                self._judge(error)
                await self._go_back(str(error))

    async def _wait_for_place(self) -> None:
        held_us = 0
        if self._live.engine is None:
            await self._hold()
            held_us = self._host.now - self._arrived
        self._decision = self._live.placed.result().reason
        self._gateway.metrics.held.observe(held_us / 1e6)

    async def _hold(self) -> None:
        live, settings = self._live, self._gateway.settings.queue
        bound = settings.max_wait_streaming_s if self._streams else settings.max_wait_s
        try:
            async with asyncio.timeout(bound):
                while live.engine is None:
                    await asyncio.shield(live.placed)
        except TimeoutError:
            text = f"no engine had room within {bound:g} s"
            raise GatewayError(429, text, retry_after_s=self._gateway.retry_after_s()) from None

    async def _attempt(self) -> Usage:
        """One engine's try. Raises _Moved, _Again, UpstreamError, _Passed or GatewayError."""
        task = asyncio.current_task(self._host.loop)
        assert task is not None

        def interrupt(reason: str) -> None:
            self._lost = reason
            task.cancel()

        self._lost = None
        self._live.interrupt = interrupt
        response: Response | None = None
        try:
            response = await self._ask_engine()
            return await self._pass_on(response)
        except asyncio.CancelledError:
            if self._lost is None:
                raise
            if task.uncancel():  # its client left at the same moment
                raise
            if self._live.id in self._host.requests:
                raise _Moved from None
            raise GatewayError(502, self._lost) from None
        finally:
            self._live.interrupt = None
            if response is not None:
                response.abort()

    async def _ask_engine(self) -> Response:
        gateway, live = self._gateway, self._live
        assert live.engine is not None
        engine = gateway.fleet.engines[live.engine]
        self._expect_start(engine.name)
        gateway.fleet.note_sent(engine.name)
        headers = gateway.headers_to(self._call, self._session)
        body = gateway.body_to(engine, self._call, self._session)
        response = await gateway.upstream.send(
            engine.url, "POST", self._call.path, headers, body, timeouts=gateway.timeouts
        )
        if response.status in RETRIED_STATUSES and self._may_retry():
            response.abort()
            gateway.fleet.note_failure(engine.name, response.status)
            raise _Again(f"answered {response.status}")
        return response

    def _judge(self, error: UpstreamError) -> None:
        """No answer came: counts against the engine, and is the end if it may not be tried again.

        Raises GatewayError.
        """
        name = self._live.engine
        if name is None:  # it was lost at the same moment
            return
        self._gateway.fleet.note_failure(name, error)
        slow = error.kind in ("first_byte", "chunk", "total")
        if slow or not self._may_retry():
            raise GatewayError(504 if slow else 502, f"engine {name}: {error}")

    async def _go_back(self, reason: str) -> None:
        """Back into the queue, after a moment."""
        engine = self._live.engine
        self._num_tries += 1
        self._gateway.metrics.num_retries += 1
        await asyncio.sleep(BACKOFF_S * 2**self._num_tries * random.random())
        if self._live.engine == engine:  # else it was placed anew meanwhile
            self._host.send_again(self._live, reason)

    def _may_retry(self) -> bool:
        most = self._gateway.settings.retries.max
        return self._num_tries < most and self._gateway.retry_budget.take()

    def _expect_start(self, engine: str) -> None:
        """Tells the scheduler when the engine probably begins with it."""
        host, live = self._host, self._live
        request = host.scheduler.state.requests[live.id]
        home = request.session.home
        at_home = home is not None and home.id == engine
        cached = min(request.session.resident_tokens, request.prompt_tokens) if at_home else 0
        self._uncached = request.prompt_tokens - cached
        now = host.now
        self._expected = expected = self._gateway.prefills(engine).send(self._uncached, now)
        if expected is None:
            return
        if expected.begins <= now:
            host.start(live, cached)
        else:
            delay = (expected.begins - now) / 1e6
            host.loop.call_later(delay, host.start_at, live, engine, cached)

    # ---- from the engine to the client

    async def _pass_on(self, response: Response) -> Usage:
        """The answer, byte for byte; nothing goes to the client before the engine's first byte."""
        name, reader = self._live.engine, AnswerReader(anthropic=self._call.dialect == "anthropic")
        chunk = await response.chunk()
        self._stop_keepalive()
        try:
            if response.status >= 400:
                await self._pass_error(response, chunk)
            self._first_bytes(name)
            self._begin(response.status, response.headers)
            while chunk:
                reader.feed(chunk)
                await self._write(chunk)
                chunk = await response.chunk()
                if not self._live.started:  # it was preempted, and resumed now
                    self._host.start(self._live, 0)
        except UpstreamError as error:
            if name is not None:
                self._gateway.fleet.note_failure(name, error)
            raise GatewayError(502, f"engine {name}: {error}") from error
        self._reply.end()
        if name is not None:
            self._gateway.fleet.note_success(name)
        return reader.usage()

    async def _pass_error(self, response: Response, chunk: bytes) -> None:
        """The engine's own error, untouched; the last event of a stream that has begun."""
        name = self._live.engine
        if name is not None and response.status >= 500:
            self._gateway.fleet.note_failure(name, response.status)
        if self._reply.started:
            while len(chunk) < MAX_ERROR_BYTES and (more := await response.chunk()):
                chunk += more
            await self._write(errors.relayed(response.status, chunk, self._call.dialect))
        else:
            self._begin(response.status, response.headers)
            while chunk:
                await self._write(chunk)
                chunk = await response.chunk()
        self._reply.end()
        raise _Passed

    def _first_bytes(self, engine: str | None) -> None:
        host, live = self._host, self._live
        host.start(live, 0)
        live.streaming = True
        if engine is None:
            return
        now, prefills = host.now, self._gateway.prefills(engine)
        if self._expected is not None:
            tell = prefills.first_token if self._streams else prefills.answered
            tell(self._uncached, self._expected.prefill, now)
        if self._streams:
            host.first_token(live)
            self._gateway.metrics.ttft.observe((now - self._arrived) / 1e6)

    def _finish(self, usage: Usage, tool: str | None) -> None:
        gateway, call, engine = self._gateway, self._call, self._live.engine
        resumed = bool(self._session.prompt_tokens)
        gateway.metrics.answered(usage, call.identity.source, resumed=resumed)
        if usage.prompt_tokens is not None:
            gateway.foresight.answered(
                self._session,
                tool,
                arrived=self._arrived,
                ended=self._host.now,
                prompt_tokens=usage.prompt_tokens,
                output_tokens=usage.output_tokens or 0,
            )
            model, size = call.fields.model or "", len(call.body)
            gateway.sessions.counted(self._session, size, model, usage.prompt_tokens)
        if usage.response_id is not None and call.api == "responses" and engine is not None:
            gateway.responses.put(call.tenant, usage.response_id, engine)
            gateway.identifier.answered(call.tenant, call.identity.session, usage.response_id)
        if usage.call_id is not None:
            gateway.identifier.called(call.tenant, call.identity, usage.call_id)
        gateway.prefetches.answered(self._session, call)
        self._host.finish(self._live, usage.output_tokens or 0, usage.cached_tokens, tool)
        if usage.prompt_tokens is not None:
            self.num_tokens = usage.prompt_tokens + (usage.output_tokens or 0)
        self.outcome = "finished"

    # ---- the client

    async def _keep_alive(self) -> None:
        """Begins the answer early when the request is held for long, and says that it lives."""
        while True:
            await asyncio.sleep(self._gateway.settings.server.keepalive_s)
            stream = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
            self._begin(200, stream)
            await self._write(errors.keepalive(self._call.dialect))

    def _stop_keepalive(self) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    def _begin(self, status: int, headers: Headers) -> None:
        if not self._reply.started:
            self._tells_events = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in headers
            )
            ours = self._gateway.headers_back(self._call, self._live.engine, self._decision)
            self._reply.start(status, [*headers, *ours])

    async def _write(self, chunk: bytes) -> None:
        self._reply.write(chunk)
        await self._reply.drain()

    async def _tell_error(self, error: GatewayError) -> None:
        self._stop_keepalive()
        if not self._reply.started:
            raise error
        if not self._tells_events:  # half a body must not look like a whole one
            raise ConnectionResetError(error.message)
        await self._write(errors.sse(error, self._call.dialect))
        self._reply.end()


def _of_refusal(refused: Refused) -> GatewayError:
    if refused.code is not None:  # a status that SDKs do not try again
        return GatewayError(422, refused.reason, code=refused.code)
    if refused.retry_after_us is None:
        return GatewayError(400, refused.reason)
    return GatewayError(429, refused.reason, retry_after_s=refused.retry_after_us // 1_000_000)
