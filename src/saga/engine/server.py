"""The emulated engine as an HTTP server with vLLM's surface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hmac import compare_digest
from typing import Any
from uuid import uuid4

from saga import __version__, wire
from saga.clock import MonotonicClock
from saga.engine.asks import Ask, Form, Reply, plain_id
from saga.engine.chat import ChatForm, CompletionForm, parse_chat, parse_completion
from saga.engine.control import OPERATIONS
from saga.engine.emulated import EmulatedEngine, Overloaded
from saga.engine.exchange import ApiError, Request
from saga.engine.extras import embeddings, tokenize
from saga.engine.generation import Generation
from saga.engine.messages import MessagesForm, message_turns, parse_messages
from saga.engine.metrics import CONTENT_TYPE, exposition
from saga.engine.options import EngineOptions
from saga.engine.publisher import KvPublisher
from saga.engine.responses import ResponsesForm, ResponseStore, continued, parse_response
from saga.engine.tokens import plan_answer, render
from saga.http import exchange as http
from saga.http.server import Server, event_loop, run

Handler = Callable[[Request], Awaitable[None]]
Parser = Callable[[Mapping[str, Any], Mapping[str, str], int], Ask]

_TYPES = {
    400: ("BadRequestError", "invalid_request_error"),
    401: ("AuthenticationError", "authentication_error"),
    404: ("NotFoundError", "not_found_error"),
    405: ("MethodNotAllowedError", "invalid_request_error"),
    408: ("RequestTimeoutError", "timeout_error"),
    413: ("RequestEntityTooLargeError", "request_too_large"),
    503: ("ServiceUnavailableError", "overloaded_error"),
}
"""What an error is called by vLLM, and by Anthropic."""
_RESPONSES = "/v1/responses"
_MESSAGES = "/v1/messages"


class EngineApp:
    """An application around one emulated engine. It lives in one event loop."""

    def __init__(
        self, options: EngineOptions, *, unix_time: Callable[[], float] = time.time
    ) -> None:
        self.publisher = KvPublisher(options.kv_events) if options.kv_events else None
        self.engine = EmulatedEngine(options, clock=MonotonicClock(), publisher=self.publisher)
        self._options = options
        self._unix_time = unix_time
        self._started = int(unix_time())
        self._store = ResponseStore()
        parse_stored = partial(parse_response, store=self._store)
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": self._generating(parse_chat, ChatForm)},
            "/v1/completions": {"POST": self._generating(parse_completion, CompletionForm)},
            _RESPONSES: {"POST": self._generating(parse_stored, ResponsesForm)},
            _MESSAGES: {"POST": self._generating(parse_messages, MessagesForm)},
            f"{_MESSAGES}/count_tokens": {"POST": self._count_tokens},
            "/v1/embeddings": {"POST": self._embeddings},
            "/tokenize": {"POST": self._tokenize},
            "/v1/models": {"GET": self._models},
            "/health": {"GET": self._health},
            "/version": {"GET": self._version},
            "/metrics": {"GET": self._metrics},
        }

    def close(self) -> None:
        """Publishes nothing any more."""
        if self.publisher is not None:
            self.publisher.close()

    async def __call__(self, asked: http.Request, reply: http.Reply) -> None:
        request = Request(asked, reply)
        try:
            await self._handler(request)(request)
        except ApiError as error:
            request.respond(error.status, _error(request.path, error))

    # ---- where a request goes

    def _handler(self, request: Request) -> Handler:
        path = request.path
        if path.startswith("/v1/") and not self._allowed(request.headers):
            raise ApiError(401, "Unauthorized")
        methods = self._routes.get(path)
        if methods is None and path.startswith(f"{_RESPONSES}/"):
            methods = {"GET": self._stored_response}
        if methods is None and path.startswith(f"{wire.CONTROL}/"):
            operation = path.removeprefix(f"{wire.CONTROL}/")
            methods = {"POST": self._control} if operation in OPERATIONS else None
        if methods is None:
            raise ApiError(404, "Not Found")
        if request.method not in methods:
            raise ApiError(405, "Method Not Allowed")
        return methods[request.method]

    def _allowed(self, headers: Mapping[str, str]) -> bool:
        if self._options.api_key is None:
            return True
        key = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key")
        return compare_digest((key or "").encode(), self._options.api_key.encode())

    # ---- generation

    def _generating(self, parse: Parser, form: type[Form]) -> Handler:
        async def handle(request: Request) -> None:
            body = await request.json()
            body.setdefault("model", self._options.model)
            ask = parse(body, request.headers, self._options.max_tool_calls)
            fresh = uuid4().hex
            name = plain_id(request.headers.get("x-request-id")) or fresh
            generation = self._submit(ask, name)
            reply = Reply(
                id=fresh if ask.store else name,
                created=int(self._unix_time()),
                ask=ask,
                generation=generation,
            )
            await self._serve(request, reply, form(reply))

        return handle

    def _submit(self, ask: Ask, name: str) -> Generation:
        room = self._room(ask)
        answer = plan_answer(ask.prompt, ask.wish, room)
        try:
            return self.engine.submit(
                ask.prompt, answer, name=name, hints=ask.hints, priority=ask.priority
            )
        except Overloaded as error:
            raise ApiError(503, str(error)) from error

    def _room(self, ask: Ask) -> int:
        """Tokens that the answer may have. Raises ApiError, in vLLM's words."""
        most, prompt = self.engine.max_tokens, ask.prompt.num_tokens
        wanted = ask.wish.max_tokens or 0
        if prompt + max(1, wanted) <= most:
            return most - prompt
        raise ApiError(
            400,
            f"This model's maximum context length is {most} tokens. However, you requested "
            f"{wanted} output tokens and your prompt contains at least {prompt} input tokens, for "
            f"a total of at least {prompt + wanted} tokens. Please reduce the length of the input "
            f"prompt or the number of requested output tokens. "
            f"(parameter=input_tokens, value={prompt})",
            param="input_tokens",
        )

    async def _serve(self, request: Request, reply: Reply, form: Form) -> None:
        """Sends the answer, and takes the request back when the client leaves."""
        send = self._stream if reply.ask.stream else self._send_whole
        try:
            await send(request, reply, form)
        finally:
            self.engine.cancel(reply.generation)

    async def _send_whole(self, request: Request, reply: Reply, form: Form) -> None:
        async for _ in reply.generation.progress():
            pass
        whole = form.whole()
        self._keep(reply, whole)
        request.respond(200, whole)

    async def _stream(self, request: Request, reply: Reply, form: Form) -> None:
        request.start_stream()
        answer, sent = reply.generation.answer, -1
        async for produced in reply.generation.progress():
            events = form.begin() if sent < 0 else b""
            text = answer.upto(produced)
            sent = max(sent, 0)
            if len(text) > sent:
                events += form.text(text[sent:])
                sent = len(text)
            if events:
                await request.send(events)
        if reply.ask.store:
            self._keep(reply, form.whole())
        request.end(form.end())

    def _keep(self, reply: Reply, whole: dict[str, Any]) -> None:
        if reply.ask.store:
            self._store.put(whole, continued(reply.ask, reply))

    # ---- the rest

    async def _count_tokens(self, request: Request) -> None:
        prompt = render(message_turns(await request.json()))
        request.respond(200, {"input_tokens": prompt.num_tokens})

    async def _embeddings(self, request: Request) -> None:
        body = await request.json()
        body.setdefault("model", self._options.model)
        request.respond(200, embeddings(body))

    async def _tokenize(self, request: Request) -> None:
        request.respond(200, tokenize(await request.json(), self.engine.max_tokens))

    async def _stored_response(self, request: Request) -> None:
        response = self._store.response(request.path.removeprefix(f"{_RESPONSES}/"))
        request.respond(200, response)

    async def _control(self, request: Request) -> None:
        operation = OPERATIONS[request.path.removeprefix(f"{wire.CONTROL}/")]
        request.respond(200, operation(self.engine, await request.json()))

    async def _models(self, request: Request) -> None:
        model = {
            "id": self._options.model,
            "object": "model",
            "created": self._started,
            "owned_by": "vllm",
            "root": self._options.model,
            "parent": None,
            "max_model_len": self.engine.max_tokens,
        }
        request.respond(200, {"object": "list", "data": [model]})

    async def _health(self, request: Request) -> None:
        request.respond_bytes(200, b"", "text/plain")

    async def _version(self, request: Request) -> None:
        request.respond(200, {"version": __version__})

    async def _metrics(self, request: Request) -> None:
        request.respond_bytes(200, exposition(self.engine), CONTENT_TYPE)


def _error(path: str, error: ApiError) -> dict[str, Any]:
    """The error in Anthropic's form on its routes, else in vLLM's."""
    ours, anthropics = _TYPES[error.status]
    if path.startswith(_MESSAGES):
        return {"type": "error", "error": {"type": anthropics, "message": error.message}}
    details = {"message": error.message, "type": ours, "param": error.param, "code": error.status}
    return {"error": details}


def serve(options: EngineOptions) -> None:
    """Serves until SIGTERM or SIGINT, on uvloop where there is one; port 0 takes a free one.

    Raises OSError if the address cannot be had.
    """

    async def main() -> None:
        app = EngineApp(options)
        try:
            await run(Server(app), options.host, options.port, drain_s=5.0)
        finally:
            app.close()

    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(main())
