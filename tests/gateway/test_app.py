"""Routes: who may use them, which there are, and what answers tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.keyring import Keyed, keyed
from tests.gateway.live import MODEL, Live, ask, chat, gateway
from tests.gateway.raw import CHAT, DIALECTS, MESSAGES, raw, refusal, request
from tests.serving import wait_until

import saga


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with gateway(engines=1, engine_options={"speed": 500.0}) as one:
        yield one
        one.check_nothing_is_lost()


@pytest.fixture(scope="module")
def empty() -> Iterator[Live]:
    with gateway(engines=0, settings={"queue.max_wait_s": 0.1}) as one:
        yield one
        one.check_nothing_is_lost()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with keyed(tmp_path_factory.mktemp("keys"), "blue") as one:
        yield one


# ---- the gateway's own pages


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
def test_it_lives(live: Live, path: str) -> None:
    assert ask(live.url + path)[:2] == (200, b"ok\n")


def test_it_is_ready_when_an_engine_is_up(empty: Live) -> None:
    assert ask(f"{empty.url}/health")[0] == 200
    assert ask(f"{empty.url}/readyz")[:2] == (503, b"no engine is up\n")


def test_its_version(live: Live) -> None:
    assert ask(f"{live.url}/version")[1] == {"version": saga.__version__}


def test_its_metrics_can_be_parsed(live: Live) -> None:
    assert ask(live.url + CHAT, chat("counted"))[0] == 200
    assert ask(live.url + CHAT, b"{")[0] == 400
    status, page, headers = ask(f"{live.url}/metrics")
    families = {family.name: family for family in text_string_to_metric_families(page.decode())}
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert all(name.startswith("saga_") for name in families)
    samples = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples}
    assert samples["saga_requests_ended_total", "finished", "default"] >= 1
    assert samples["saga_requests_refused_total", "400"] >= 1
    assert samples["saga_tokens_total", "prompt"] > 0
    assert samples["saga_requests_held",] == 0
    assert all(family.documentation for family in families.values())


def test_while_it_shuts_down_it_takes_nothing_new() -> None:
    with gateway(engines=1) as live:
        live.gateway.draining = True
        assert ask(f"{live.url}/readyz")[:2] == (503, b"shutting down\n")
        assert ask(f"{live.url}/livez")[0] == 200
        status, document, headers = ask(live.url + MESSAGES, {"messages": []})
        assert (status, refusal(MESSAGES, document)[0]) == (503, "overloaded_error")
        assert headers["Retry-After"] == "5"


# ---- who may come in


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer saga-guess"},
        {"x-api-key": "saga-guess"},
        {"authorization": "Basic c2FnYQ=="},
    ],
)
def test_without_a_good_key_nothing_is_served(
    locked: Keyed, path: str, headers: dict[str, str]
) -> None:
    status, document, _ = ask(locked.live.url + path, chat("x"), headers=headers)
    kinds = {CHAT: "AuthenticationError", MESSAGES: "authentication_error"}
    kind, message = refusal(path, document)
    assert (status, kind) == (401, kinds[path])
    assert "saga-guess" not in message
    assert ask(f"{locked.live.url}/v1/models", headers=headers)[0] == 401
    assert ask(f"{locked.live.url}/v1/saga/engines", headers=headers)[0] == 401


def test_a_key_lets_in_by_either_header(locked: Keyed) -> None:
    key = locked.tenants["blue"]["authorization"].removeprefix("Bearer ")
    for headers in (locked.tenants["blue"], {"x-api-key": key}):
        assert ask(locked.live.url + CHAT, chat("x"), headers=headers)[0] == 200
        assert ask(f"{locked.live.url}/v1/models", headers=headers)[0] == 200


@pytest.mark.parametrize("path", DIALECTS)
def test_an_admin_is_no_tenant(locked: Keyed, path: str) -> None:
    status, document, _ = ask(locked.live.url + path, chat("x"), headers=locked.admin)
    kinds = {CHAT: "PermissionDeniedError", MESSAGES: "permission_error"}
    assert (status, refusal(path, document)[0]) == (403, kinds[path])


def test_health_needs_no_key(locked: Keyed) -> None:
    for path in ("/health", "/livez", "/readyz", "/version", "/metrics"):
        assert ask(locked.live.url + path)[0] == 200


# ---- which paths there are


def test_without_engines(empty: Live) -> None:
    status, document, headers = ask(empty.url + CHAT, chat("x"))
    assert (status, document["error"]["type"]) == (429, "RateLimitError")
    assert 1 <= int(headers["Retry-After"]) <= 60
    status, document, headers = ask(f"{empty.url}/v1/models")
    assert (status, headers["Retry-After"]) == (503, "5")


def test_a_websocket_is_refused_at_once(live: Live) -> None:
    """With the status after which Codex uses HTTP instead, without more tries."""
    asked = (
        "connection: Upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    status, headers, _ = asyncio.run(raw(live.url, request("/v1/responses", *asked)))
    assert (status, headers["content-type"]) == (426, "application/json")


@pytest.mark.parametrize(
    "target",
    [
        "/admin",
        "/",
        "/v1",
        "/v2/models",
        "/v1/load_lora_adapter",
        "/v1/load%5Flora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/saga",
        "/v1/saga/stats",
        "/v1/%73aga/stats",
        "/v1//saga/stats",
        "/v1/./saga/stats",
        "/v1/x/../saga/stats",
        "/v1/x/%2e%2e/saga/stats",
        "/tokenize/../metrics",
        "/v1/responses/resp_of_nobody",
        "/v1/%72esponses/resp_of_nobody",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_an_engine_keeps_for_its_operator_is_out_of_reach(
    live: Live, target: str, method: str
) -> None:
    head = request(target, "content-type: application/json", "content-length: 2", method=method)
    status, _, told = asyncio.run(raw(live.url, head, b"{}"))
    kind, message = refusal(target, msgspec.json.decode(told))
    assert (status, kind) == (404, "NotFoundError")
    assert message.endswith(("is not here", "is not known here")), "an engine was asked"


@pytest.mark.parametrize("target", ["/v1/%2573aga/stats", "/v1/models/a%2Fb%20c%2525?x=%20"])
def test_an_engine_gets_the_path_and_the_query_as_they_came(live: Live, target: str) -> None:
    """``%25`` is a percent sign to the engine, not the start of another code."""
    head = request(target, "content-type: application/json", "content-length: 2", method="POST")
    status, _, told = asyncio.run(raw(live.url, head, b"{}"))
    assert (status, msgspec.json.decode(told)["error"]["message"]) == (404, "Not Found")


def test_a_query_of_other_bytes(live: Live) -> None:
    status, _, _ = asyncio.run(raw(live.url, request("/v1/models?x=\xff")))
    assert status == 400


def test_embeddings_pass_through_without_being_scheduled(live: Live) -> None:
    arrived = live.outcomes()["arrived"]
    status, document, headers = ask(f"{live.url}/v1/embeddings", {"model": MODEL, "input": "x"})
    assert (status, document["object"]) == (200, "list")
    assert not [name for name in headers if name.startswith("x-saga-")]
    assert live.outcomes()["arrived"] == arrived


# ---- what is told in answers


def test_answers_tell_session_engine_and_decision(live: Live) -> None:
    asked = {"x-saga-session-id": "told \u00e9"}
    _, _, headers = ask(live.url + CHAT, chat("x"), headers=asked)
    assert headers["x-saga-session-id"].startswith("told ")
    assert headers["x-saga-session-id"].isascii()
    assert headers["x-saga-session-source"] == "saga"
    assert headers["x-saga-engine"] == live.gateway.settings.engines.urls[0].removeprefix("http://")
    assert headers["x-saga-decision"]


def test_answers_need_not_tell(live: Live) -> None:
    quiet = {"identity.response_headers": False}
    with gateway(engines=live.gateway.settings.engines.urls, settings=quiet) as one:
        wait_until(lambda: ask(f"{one.url}/readyz")[0] == 200)
        for stream in (False, True):
            status, _, headers = ask(one.url + CHAT, chat("x", stream=stream))
            assert status == 200
            assert not [name for name in headers if name.startswith("x-saga-")]
