"""Servers that cannot be used, or not wholly, and how that is said."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.patient import CHAT, COMPLETIONS, QUICK, Vllm, diagnosed, examined, of
from tests.gateway.servers import Handler, refusing, silence, talk

from saga.gateway.doctor import Diagnosis

# ---- requests that are not answered


@pytest.mark.parametrize("status", [400, 404, 429])
def test_a_refused_request_leaves_much_unknown(status: int) -> None:
    found = diagnosed(Vllm(statuses={CHAT: status, COMPLETIONS: 404}))
    assert found.problem is None
    answering = of(found, "answers requests")
    assert answering.answer == "unknown"
    assert answering.found == f"it answers {status}: no such thing"


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_an_engine_that_cannot_serve_a_request_cannot_be_used(status: int) -> None:
    found = diagnosed(Vllm(statuses={CHAT: status}))
    assert found.problem == f"it does not serve a request: it answers {status}: no such thing"
    assert of(found, "KV memory").answer == "yes"


def test_an_engine_that_never_answers_a_request_cannot_be_used() -> None:
    engine = Vllm()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == CHAT:
            await silence()
        return await engine.handle(request)

    found = diagnosed(handler, timeouts=QUICK)
    assert found.problem == "it does not serve a request: no answer within 0.5 s"


def test_streams_that_are_refused() -> None:
    engine = Vllm()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == CHAT and (await request.json()).get("stream"):
            return web.Response(status=400)
        return await engine.handle(request)

    found = diagnosed(handler)
    assert of(found, "usage in streams").found == "streams are refused"
    assert of(found, "prefix cache").answer == "yes", "its metrics say so"
    assert found.problem is None


@pytest.mark.parametrize(
    "said",
    [
        b'{"error": {"message": "Incorrect key: sk-secret-key", "code": 401}}',
        b'{"message": "sk-secret-key"}',
        b'{"detail": "sk-secret-key"}',
        b'{"error": "sk-secret-key"}',
    ],
)
def test_a_key_is_never_repeated(said: bytes) -> None:
    found = diagnosed(Vllm(statuses={CHAT: 401}, said=said), "sk-secret-key")
    assert found.problem is not None and "***" in found.problem
    assert "sk-secret-key" not in repr(found)


@pytest.mark.parametrize("said", [b"", b"oops", b"[1]", b'{"error": [1]}', b"\xff", b"[" * 9999])
def test_errors_that_say_nothing(said: bytes) -> None:
    found = diagnosed(Vllm(statuses={CHAT: 500}, said=said))
    assert found.problem == "it does not serve a request: it answers 500"


def test_long_errors_are_cut() -> None:
    found = diagnosed(Vllm(statuses={CHAT: 500}, said=b'{"error": "%s"}' % (b"x" * 5_000)))
    assert found.problem is not None and len(found.problem) < 300


# ---- no engine


def answering(status: int, body: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    return handler


@pytest.mark.parametrize(
    ("status", "body", "key", "problem"),
    [
        (200, b" <!doctype html><p>Hello", None, "is a web page (200)"),
        (404, b"<html>not here</html>", None, "is a web page (404)"),
        (401, b"", None, "it wants an API key: --api-key (it answers 401)"),
        (401, b"", "key", "it refuses the API key (it answers 401)"),
        (403, b"", "key", "it refuses the API key (it answers 403)"),
        (301, b"", None, "/v1/models is elsewhere (it answers 301)"),
        (502, b"<html>Bad gateway", None, "/v1/models answers 502: no engine is up"),
        (200, b"{}", None, "it lists no models and is no engine that SAGA knows"),
        (404, b"", None, "it lists no models and is no engine that SAGA knows"),
    ],
)
def test_servers_that_are_no_engines(
    status: int, body: bytes, key: str | None, problem: str
) -> None:
    found = diagnosed(answering(status, body), key)
    assert found.problem is not None and problem in found.problem
    assert (found.kind, found.findings) == (None, ())


def test_nothing_listens() -> None:
    with refusing() as url:
        found = asyncio.run(examined(url))
        assert found.problem == f"nothing listens at {url.removeprefix('http://')}"


def test_no_such_host() -> None:
    found = asyncio.run(examined("http://no-such-host.invalid:8000"))
    assert found.problem == "there is no host of that name (no-such-host.invalid)"


async def silently(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await silence()


async def greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")
    await reader.read(1)


@asynccontextmanager
async def plain(
    conversation: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], scheme: str
) -> AsyncIterator[str]:
    async with talk(conversation) as url:
        yield url.replace("http://", f"{scheme}://")


@pytest.mark.parametrize(
    ("conversation", "scheme", "problem"),
    [
        (silently, "http", "no answer within 0.5 s"),
        (greeting, "http", "is it an HTTP server, or https://127.0.0.1"),
        (greeting, "https", "it does not speak TLS as asked"),
    ],
)
def test_servers_of_other_protocols(conversation: Any, scheme: str, problem: str) -> None:
    async def run() -> Diagnosis:
        async with plain(conversation, scheme) as url:
            return await examined(url, timeouts=QUICK)

    found = asyncio.run(run())
    assert found.problem is not None and problem in found.problem


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path / "engine.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=e"
    )
    subprocess.run(
        [*command.split(), "-keyout", file, "-out", tmp_path / "crt"],
        check=True,
        capture_output=True,
    )
    file.write_bytes(file.read_bytes() + (tmp_path / "crt").read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    async def run() -> Diagnosis:
        async with talk(silently, tls=context) as url:
            return await examined(url)

    found = asyncio.run(run())
    assert found.problem is not None
    assert found.problem.startswith("its certificate is not trusted here: self")


# ---- whatever comes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "id", "engines", "name", "state", "usage", "error", "m"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
PATHS = ["/v1/models", "/metrics", "/server_info", "/v1/saga/stats", "/v1/saga/engines", CHAT]


@settings(max_examples=25)
@given(routes=st.dictionaries(st.sampled_from(PATHS), JSON | st.binary(), max_size=6))
def test_no_answer_whatever_is_an_error(routes: dict[str, Any]) -> None:
    engine = Vllm(models=("m",))

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path in routes:
            answer = routes[request.path]
            data = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
            return web.Response(body=data)
        return await engine.handle(request)

    found = diagnosed(handler)
    for finding in found.findings:
        assert finding.answer in ("yes", "no", "unknown")
        assert finding.fix is None or finding.answer == "no"
