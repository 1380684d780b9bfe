"""Headers of requests that leave through httpx2, which the SDKs of this environment use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace as Shape
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.stub import Quiet, Serving

from saga import wire
from saga.adapters import Identity, identified, install, outgoing, uninstall
from saga.adapters.identity import Answered, begin_step, end_step
from saga.adapters.outgoing import BASE_URL, add_headers, gateway_of, is_addressed

ANSWER = b'{"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": []}'


class Server(Serving):
    """Writes down the headers of what it is asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.session: str | None = "told-session"
        outer = self

        class Handler(Quiet):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.asked.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(ANSWER)))
                if outer.session is not None:
                    self.send_header(wire.SESSION_HEADER, outer.session)
                self.end_headers()
                self.wfile.write(ANSWER)

        super().__init__(Handler)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server().serving() as one:
        yield one


@pytest.fixture(autouse=True)
def hooked(server: Server) -> Iterator[None]:
    server.asked.clear()
    server.session = "told-session"
    install()
    yield
    uninstall()


def ask(server: Server, path: str = "/v1/chat/completions", **headers: str) -> dict[str, str]:
    """What arrived, of SAGA's headers."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with httpx2.Client(trust_env=False) as client:
        assert client.post(server.url + path, json={}, headers=sent).status_code == 200
    return ours(server)


def ours(server: Server) -> dict[str, str]:
    return {name: value for name, value in server.asked[-1].items() if name.startswith("x-saga")}


def test_a_request_says_whose_step_it_is(server: Server) -> None:
    assert ask(server) == {}
    with identified(workflow="w", session="s", step="plan"):
        told = ask(server)
    assert told == {"x-saga-workflow-id": "w", "x-saga-session-id": "s", "x-saga-step": "plan"}
    assert ask(server) == {}


def test_sdk_requests_say_it_too(server: Server) -> None:
    async def awaited() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="key") as client:
            await client.chat.completions.create(model="m", messages=[])

    with identified(workflow="w"):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key") as client:
            client.chat.completions.create(model="m", messages=[])
        assert ours(server) == {"x-saga-workflow-id": "w"}
        asyncio.run(awaited())
        assert ours(server) == {"x-saga-workflow-id": "w"}
    assert len(server.asked) == 2


def test_what_the_application_set_stays(server: Server) -> None:
    with identified(workflow="w", session="s"):
        told = ask(server, X_Saga_Session_Id="mine")
        assert told == {"x-saga-workflow-id": "w", "x-saga-session-id": "mine"}
        assert ask(server, x_saga_context="e30") == {"x-saga-context": "e30"}


@given(
    st.dictionaries(st.sampled_from(["x-saga-agent", "x-saga-step", "accept", "x"]), st.text()),
    st.dictionaries(st.sampled_from(["x-saga-agent", "x-saga-step", "x-saga-final"]), st.text()),
)
def test_no_header_is_ever_overwritten(theirs: dict[str, str], told: dict[str, str]) -> None:
    headers = dict(theirs)
    add_headers(headers, told)
    assert theirs.items() <= headers.items()
    assert headers == {**told, **theirs}


def test_only_models_are_told(server: Server) -> None:
    with identified(workflow="w"):
        assert ask(server, "/v1/embeddings") == {}
        assert ask(server, "/v1/messages") == {"x-saga-workflow-id": "w"}
        assert ask(server, "/other/completions/") == {"x-saga-workflow-id": "w"}


def test_only_the_gateway_is_told_once_it_is_known(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with identified(workflow="w"):
        monkeypatch.setenv(BASE_URL, "http://saga.example:8400/v1")
        assert ask(server) == {}
        monkeypatch.setenv(BASE_URL, server.url.replace("127.0.0.1", "localhost"))
        assert ask(server) == {"x-saga-workflow-id": "w"}
        assert ask(server, "/v1/embeddings") == {"x-saga-workflow-id": "w"}


@pytest.mark.parametrize("base", ["nonsense", "http://[", "http://a:b"])
def test_a_base_url_that_is_none_costs_headers_only(
    server: Server, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.setenv(BASE_URL, base)
    with identified(workflow="w"):
        assert ask(server) == {}


class Odd:
    """A value that cannot even be read."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_identity_that_cannot_be_read_costs_headers_only(server: Server) -> None:
    with identified(workflow=Odd()):
        assert ask(server) == {}


def test_the_gateway_that_answered_is_remembered(server: Server) -> None:
    step, before = begin_step(Identity(workflow="w"))
    try:
        ask(server, authorization="Bearer key", x_other="1")
        assert step.answered == Answered(
            server.url, (("authorization", "Bearer key"),), "told-session"
        )
        assert "key" not in repr(step.answered)
    finally:
        end_step(before)


def test_engines_are_no_gateways(server: Server) -> None:
    server.session = None
    step, before = begin_step(Identity(workflow="w"))
    try:
        assert ask(server) == {"x-saga-workflow-id": "w"}
        assert step.answered is None
    finally:
        end_step(before)


def test_uninstalling_leaves_nothing() -> None:
    hooked = httpx2.Client.send, httpx2.AsyncClient.send
    install()
    assert (httpx2.Client.send, httpx2.AsyncClient.send) == hooked
    uninstall()
    plain = httpx2.Client.send, httpx2.AsyncClient.send
    assert plain[0] is not hooked[0]
    uninstall()
    install()
    assert httpx2.Client.send is not plain[0]
    uninstall()
    assert (httpx2.Client.send, httpx2.AsyncClient.send) == plain
    assert plain[0].__qualname__ == "Client.send"
    assert not hasattr(plain[0], "__wrapped__")


def test_a_hook_that_somebody_wrapped_stays_there_and_says_nothing(server: Server) -> None:
    hooked = httpx2.Client.send

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return hooked(self, *args, **kwargs)

    httpx2.Client.send = theirs  # type: ignore[method-assign] # what other tools do
    uninstall()
    try:
        assert httpx2.Client.send is theirs
        with identified(workflow="w"):
            assert ask(server) == {}
    finally:
        httpx2.Client.send = hooked.__wrapped__  # type: ignore[attr-defined,method-assign] # undo


class Raises:
    """Whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __contains__(self, item: object) -> bool:
        raise RuntimeError


odd = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.builds(Raises),
    st.builds(
        Shape,
        url=st.one_of(st.none(), st.text(), st.just("http://h/v1/messages"), st.builds(Odd)),
        headers=st.one_of(
            st.none(), st.builds(Raises), st.dictionaries(st.text(), st.integers() | st.text())
        ),
    ),
)


@given(request=odd, answer=odd, by_name=st.booleans(), fails=st.booleans())
def test_an_application_gets_what_its_client_gives(
    request: Any, answer: Any, by_name: bool, fails: bool
) -> None:
    """Whatever requests and answers are like, and whatever else the client is called with."""

    sent: list[Any] = []

    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        if fails:
            raise ZeroDivisionError
        sent.append((args, kwargs))
        return answer

    async def send_awaited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return send(self, *args, **kwargs)

    module = Shape(
        Client=type("Client", (), {"send": send}),
        AsyncClient=type("AsyncClient", (), {"send": send_awaited}),
    )
    args, kwargs = ((), {"request": request}) if by_name else ((request, 1), {"stream": True})
    undo = outgoing.install(module)
    with identified(workflow="w"), suppress(ZeroDivisionError):
        assert module.Client().send(*args, **kwargs) is answer
        assert asyncio.run(module.AsyncClient().send(*args, **kwargs)) is answer
    assert sent == ([] if fails else [(args, kwargs)] * 2)
    undo()
    assert module.Client.send is send
    assert module.AsyncClient.send is send_awaited


@given(st.text())
def test_any_text_is_read_as_a_url_or_is_a_value_error(url: str) -> None:
    for read in (is_addressed, gateway_of):
        with suppress(ValueError):
            read(url)


def test_a_gateway_may_lie_below_a_path() -> None:
    assert gateway_of("https://u:p@host:1/llm/v1/chat/completions?x=1") == "https://host:1/llm"
    assert gateway_of("http://host/v1/messages") == "http://host"
