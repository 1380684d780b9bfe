"""The control routes of vLLM's API server. They stand below ``/v1``, which ``--api-key`` guards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse

from saga import wire
from saga.engine.vllm import METHOD

MAX_BODY_BYTES: Final = 65_536
TIMEOUT_S: Final = 10.0

Answer = Mapping[str, Any]


class ControlEndpoint:
    """What vLLM calls an endpoint plugin."""

    name = "saga_endpoint"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        for op in wire.CONTROL_OPS:
            app.add_route(f"{wire.CONTROL}/{op}", _control, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        state.saga_engine = engine_client


async def _control(request: Request) -> JSONResponse:
    op = request.url.path.rpartition("/")[2]
    body = await _body(request)
    if isinstance(body, JSONResponse):
        return body
    engine = request.app.state.saga_engine
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answers = await _ask(engine.engine_core, op, body)
    except Exception as error:
        # vLLM has its own classes for engines that are dead, which move between its versions.
        return _error(503, f"the engine does not answer: {type(error).__name__}")
    return _respond(merge(answers))


async def _ask(core: Any, op: str, body: dict[str, Any]) -> Sequence[Answer]:
    """The answers of all data-parallel engines; vLLM 0.26 tells only the first one's."""
    ask_all = getattr(core, "call_utility_all_async", None)
    if ask_all is None:
        return [await core.call_utility_async(METHOD, op, body)]
    answers: Sequence[Answer] = await ask_all(METHOD, op, body)
    return answers


def merge(answers: Sequence[Answer]) -> Answer:
    """One answer of many: of a session or request, the one that knows it; of figures, the sums."""
    good = [answer for answer in answers if answer["status"] == 200]
    if len(answers) == 1 or not good:
        return answers[0]
    figures = [answer["answer"] for answer in good]
    if "session" in figures[0]:
        best = max(figures, key=lambda figure: int(figure["resident_tokens"]))
    elif "request" in figures[0]:
        best = max(figures, key=lambda figure: bool(figure["applied"]))
    else:
        sums = {
            name: sum(figure[name] for figure in figures)
            for name, value in figures[0].items()
            if isinstance(value, int)
        }
        best = figures[0] | sums | {"engines": figures}
    return {"status": 200, "answer": best}


async def _body(request: Request) -> dict[str, Any] | JSONResponse:
    """The body, or the answer if it is none that can be used."""
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            return _error(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _error(400, f"There was an error parsing the body: {error}")
    return body if isinstance(body, dict) else _error(400, "The body must be a JSON object")


def _respond(answer: Answer) -> JSONResponse:
    if answer["status"] == 200:
        return JSONResponse(answer["answer"])
    return _error(answer["status"], answer["reason"], answer["param"])


def _error(status: int, reason: str, param: str | None = None) -> JSONResponse:
    """In OpenAI's form, as vLLM itself refuses."""
    kind = HTTPStatus(status).phrase.replace(" ", "") + "Error"
    details = {"message": reason, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": details}, status_code=status)
