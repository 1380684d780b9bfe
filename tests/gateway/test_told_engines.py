"""What an engine is told beside a request, and what is kept from it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.live import chat, fetch
from tests.gateway.raw import CHAT, DIALECTS
from tests.gateway.tiny import Tiny, tiny

from saga.gateway.keys import generate_key

Asked = tuple[dict[str, str], bytes]


def told(
    body: Any,
    headers: dict[str, str] | None = None,
    *,
    engine: Tiny | None = None,
    path: str = CHAT,
    settings: dict[str, Any] | None = None,
) -> Asked:
    """What an engine got of one request."""
    engine = engine or Tiny()

    async def scenario() -> None:
        async with tiny(engine, **(settings or {})) as live:
            assert (await fetch(live.url + path, body, headers=headers))[0] == 200

    asyncio.run(scenario())
    assert len(engine.asked) == 1
    return engine.asked[0]


def xargs(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(body)["vllm_xargs"]
    return found


@pytest.mark.parametrize("path", DIALECTS)
def test_an_engine_without_hints_gets_the_very_bytes(path: str) -> None:
    body = b' {"model" : "m",\t"messages": [], "odd": [1.50, 1e2, "\\ud83d\\ude00"]}\n'
    assert told(body, path=path)[1] == body


def test_our_own_field_stays_with_us() -> None:
    saga = {"session_id": "s", "workflow_id": "w", "final": True}
    assert msgspec.json.decode(told(chat("x", saga=saga))[1]) == chat("x")
    hinted = told(chat("x", saga=saga), engine=Tiny(reads_hints=True))[1]
    expected = {"saga_session": "default/s", "saga_final": 1, "saga_ttl_s": 0}
    assert msgspec.json.decode(hinted) == {**chat("x"), "vllm_xargs": expected}


def test_hints_join_what_the_client_tells_the_engine() -> None:
    asked = {"x-saga-session-id": "s"}
    body = chat("x", vllm_xargs={"mine": 1, "nested": {"a": [1]}})
    hints = xargs(told(body, asked, engine=Tiny(reads_hints=True))[1])
    assert hints == {"mine": 1, "nested": {"a": [1]}, "saga_session": "default/s"}


def test_no_client_speaks_for_another_session() -> None:
    """A hint's name in a client's body must not reach what the engine keeps for others."""
    pinning = {"saga_session": "red/s", "saga_ttl_s": 10**9, "saga_score": 99, "saga_final": 0}
    body = chat("x", vllm_xargs=pinning)
    hints = xargs(told(body, {"x-saga-session-id": "s"}, engine=Tiny(reads_hints=True))[1])
    assert hints == {"saga_session": "default/s"}


def test_the_session_is_always_named_in_a_header() -> None:
    assert told(chat("x"), {"x-saga-session-id": "s 1"})[0]["x-session-id"] == "default/s%201"


def test_sglang_reads_the_session_from_the_body() -> None:
    body = told(chat("x"), {"x-saga-session-id": "s"}, engine=Tiny(sglang=True))[1]
    assert msgspec.json.decode(body) == {**chat("x"), "session_id": "default/s"}
    own = told(chat("x", session_id="own"), engine=Tiny(sglang=True))[1]
    assert msgspec.json.decode(own) == chat("x", session_id="default/own")


def test_a_clients_name_for_a_session_is_not_an_engines() -> None:
    """Two tenants may use the same one."""
    headers, body = told(chat("x", session_id="own"), {"x-session-id": "other"})
    assert headers["x-session-id"] == "default/own"
    assert msgspec.json.decode(body) == chat("x")


def test_the_clients_headers_reach_the_engine() -> None:
    asked = {"anthropic-beta": "a,b", "x-request-id": "r", "traceparent": "00-1-2-01"}
    headers = told(chat("x"), asked)[0]
    assert {name: headers.get(name) for name in asked} == asked


def test_headers_for_one_connection_do_not() -> None:
    asked = {"connection": "keep-alive, x-mine", "x-mine": "1", "te": "trailers"}
    headers = told(chat("x"), asked)[0]
    assert "x-mine" not in headers
    assert "te" not in headers
    assert headers["accept-encoding"] == "identity"


def test_a_key_to_the_gateway_is_no_key_to_an_engine(tmp_path: Path) -> None:
    key, hashed = generate_key()
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{tenant: blue, hash: '{hashed}'}}]")
    for name in ("authorization", "x-api-key"):
        value = f"Bearer {key}" if name == "authorization" else key
        headers = told(chat("x"), {name: value}, settings={"auth.keys_file": str(file)})[0]
        assert key not in str(headers)
        assert headers["x-session-id"].startswith("blue/")


def test_the_engines_key_is_the_operators() -> None:
    settings = {"engines.api_key": "ours"}
    headers = told(chat("x"), {"authorization": "Bearer mine"}, settings=settings)[0]
    assert headers["authorization"] == "Bearer ours"


def test_without_any_keys_the_engine_judges_the_clients() -> None:
    assert told(chat("x"), {"authorization": "Bearer mine"})[0]["authorization"] == "Bearer mine"
