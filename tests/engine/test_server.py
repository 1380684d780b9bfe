"""The server's other side: control routes, figures, refusals, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.engine.factory import Running, running

Answer = tuple[int, Any]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def engine() -> Iterator[Running]:
    with running(speed=500.0, kv_tokens=1_600) as server:
        yield server


def call(
    engine: Running,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """The status, and the body: JSON where it is."""
    connection = HTTPConnection(engine.url.removeprefix("http://"), timeout=20)
    try:
        payload = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(
            method or ("GET" if body is None else "POST"), path, payload, headers or {}
        )
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()


def chat(engine: Running, user: str, *, headers: dict[str, str] | None = None, **body: Any) -> Any:
    messages = [{"role": "user", "content": user}]
    forced = {"output_tokens": 17}
    status, answer = call(
        engine,
        CHAT,
        {"model": "m", "messages": messages, "saga_emulate": forced} | body,
        headers=headers,
    )
    assert status == 200, answer
    return answer


def cached(answer: Any) -> int:
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def figures(engine: Running) -> dict[str, float]:
    _, text = call(engine, "/metrics")
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


# ---- sessions


def hold_out(engine: Running, **hints: Any) -> int:
    """Tokens found again by a session of 600 tokens after 1,200 of others, in a cache of 1,600."""
    session = str(hints) + str(len(hints))
    answer = chat(engine, session.ljust(2_300, "."), vllm_xargs={"saga_session": session, **hints})
    for letter in "xy":
        chat(engine, session + letter * 2_300)
    messages = [
        {"role": "user", "content": session.ljust(2_300, ".")},
        answer["choices"][0]["message"],
        {"role": "user", "content": "And?"},
    ]
    return cached(chat(engine, "", messages=messages))


def test_hints_protect_what_a_session_leaves(engine: Running) -> None:
    assert hold_out(engine) < 590
    assert hold_out(engine, saga_ttl_s=60, saga_score=0.9) >= 590
    assert hold_out(engine, saga_ttl_s="60", saga_score="0.9") >= 590, "texts are numbers too"
    assert hold_out(engine, saga_ttl_s=60, saga_final=True) < 590
    assert hold_out(engine, saga_ttl_s=0) < 590


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"X-Session-ID": "named"}, {}),
        ({"X-Session-ID": "other"}, {"session_id": "named"}),
        (
            {"X-Session-ID": "other"},
            {"session_id": "other", "vllm_xargs": {"saga_session": "named"}},
        ),
        ({"X-Session-ID": "named"}, {"session_id": "not\nan id"}),
    ],
)
def test_where_a_session_is_named(headers: dict[str, str], body: Any) -> None:
    with running(speed=500.0) as server:
        answer = chat(server, "hello" * 40, headers=headers, **body)
        tokens = (answer["usage"]["total_tokens"] - 1) // 16 * 16
        status, place = call(server, "/v1/saga/stats", {"session": "named"})
        assert (status, place) == (200, {"session": "named", "resident_tokens": tokens})


def test_control_of_sessions(engine: Running) -> None:
    chat(engine, "control" * 40, session_id="s")
    for operation, body in (
        ("retain", {"ttl_s": 30, "score": 0.5}),
        ("retain", {"ttl_s": 30}),
        ("extend", {"ttl_s": 60}),
        ("release", {}),
        ("retain", {"ttl_s": 0}),
    ):
        status, answer = call(engine, f"/v1/saga/{operation}", {"session": "s"} | body)
        assert (status, answer["session"], answer["resident_tokens"] > 0) == (200, "s", True)


@pytest.mark.parametrize(
    ("operation", "body", "status", "reason"),
    [
        ("retain", {"session": "s"}, 400, "ttl_s"),
        ("retain", {"session": "s", "ttl_s": -1}, 400, "ttl_s"),
        ("retain", {"session": "s", "ttl_s": True}, 400, "ttl_s"),
        ("retain", {"session": "s", "ttl_s": 1e300}, 400, "ttl_s"),
        ("retain", {"session": "s", "ttl_s": 1, "score": "high"}, 400, "score"),
        ("retain", {"ttl_s": 1}, 400, "session"),
        ("extend", {"session": 7, "ttl_s": 1}, 400, "session"),
        ("release", {"session": "never seen"}, 404, "never seen"),
        ("stats", {"session": "x" * 300}, 400, "session"),
        ("priority", {"request": "r"}, 400, "priority"),
        ("priority", {"request": "r", "priority": 1}, 404, "'r'"),
        ("preempt", {"request": "r"}, 404, "'r'"),
        ("preempt", {}, 400, "request"),
        ("preempt", [], 400, "object"),
        ("dance", {}, 404, "Not Found"),
    ],
)
def test_control_says_what_is_wrong(
    engine: Running, operation: str, body: Any, status: int, reason: str
) -> None:
    found, answer = call(engine, f"/v1/saga/{operation}", body)
    assert found == status
    assert reason in answer["error"]["message"]


# ---- requests


@asynccontextmanager
async def asking(engine: Running, name: str, **body: Any) -> AsyncIterator[asyncio.StreamReader]:
    """A client with a prompt of 603 tokens that wants 500 more, and leaves at the end."""
    host, port = engine.url.removeprefix("http://").split(":")
    messages = [{"role": "user", "content": name[0] * 2_400}]
    content = json.dumps(
        {"messages": messages, "saga_emulate": {"output_tokens": 500}} | body
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: {name}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(head.encode() + content)
        await writer.drain()
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


async def until(engine: Running, **expected: float) -> None:
    """Waits until the engine's figures are as expected."""
    stats: dict[str, Any] = {}
    for _ in range(500):
        _, stats = await asyncio.to_thread(call, engine, "/v1/saga/stats", {})
        if stats.items() >= expected.items():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{expected} never came: {stats}")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(stream: bool) -> None:
    async def scenario(engine: Running) -> None:
        async with asking(engine, "r", stream=stream) as reader:
            await until(engine, num_requests_running=1)
            if stream:
                assert b"200 OK" in await reader.readline()
        await until(engine, num_requests_running=0, num_requests_waiting=0, used_blocks=0)

    with running(speed=0.2) as engine:
        asyncio.run(scenario(engine))
        assert engine.app.engine.ended["abort"] == 1


def test_control_of_requests_and_a_full_queue() -> None:
    """70 blocks have room for one of them: the second waits, and there a third may not."""

    async def scenario(engine: Running) -> None:
        async with asking(engine, "first", stream=True):
            await until(engine, num_requests_running=1)
            async with asking(engine, "second", stream=True):
                await until(engine, num_requests_running=1, num_requests_waiting=1)
                body: Any = {"messages": [{"role": "user", "content": "third"}]}
                status, answer = await asyncio.to_thread(call, engine, CHAT, body)
                assert (status, answer["error"]["type"]) == (503, "ServiceUnavailableError")
                for operation, body, applied in (
                    ("priority", {"request": "chatcmpl-second", "priority": -5}, True),
                    ("preempt", {"request": "second"}, False),
                    ("preempt", {"request": "chatcmpl-first"}, True),
                ):
                    path = f"/v1/saga/{operation}"
                    status, answer = await asyncio.to_thread(call, engine, path, body)
                    assert (status, answer["applied"]) == (200, applied)
                await until(engine, num_preemptions=1, num_requests_running=1)

    with running(speed=0.2, kv_tokens=70 * 16, max_waiting=1) as engine:
        asyncio.run(scenario(engine))


# ---- figures


def test_figures_have_vllms_names_and_count_what_happened() -> None:
    with running(speed=500.0, kv_tokens=1_600) as engine:
        first = chat(engine, "metrics" * 50)
        second = chat(engine, "metrics" * 50, max_tokens=5, saga_emulate=None)
        now = figures(engine)
        usages = [first["usage"], second["usage"]]
        prompts = sum(usage["prompt_tokens"] for usage in usages)
        assert now["vllm:prompt_tokens_total"] == now["vllm:prefix_cache_queries_total"] == prompts
        assert now["vllm:prefix_cache_hits_total"] == cached(second) > 0
        assert now["vllm:generation_tokens_total"] == 17 + 5
        assert now["vllm:num_requests_running"] == now["vllm:num_requests_waiting"] == 0
        assert now["vllm:kv_cache_usage_perc"] == now["vllm:num_preemptions_total"] == 0
        _, text = call(engine, "/metrics")
        labels = 'engine="0",finished_reason="{}",model_name="saga-emulated"'
        for reason in ("stop", "length"):
            assert f"vllm:request_success_total{{{labels.format(reason)}}} 1.0" in text
        assert 'block_size="16"' in text and 'num_gpu_blocks="100"' in text


def test_tokenize(engine: Running) -> None:
    status, answer = call(engine, "/tokenize", {"prompt": "abcdabcd"})
    assert status == 200
    assert (answer["count"], answer["max_model_len"]) == (2, 1_600)
    assert answer["tokens"][0] == answer["tokens"][1] == int.from_bytes(b"abcd")
    messages = [{"role": "user", "content": "hello"}]
    _, counted = call(engine, "/tokenize", {"messages": messages})
    assert counted["count"] == chat(engine, "hello")["usage"]["prompt_tokens"]


def test_health_and_version(engine: Running) -> None:
    assert call(engine, "/health") == (200, "")
    assert "version" in call(engine, "/version")[1]


# ---- refusals


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, b"{", 400),
        (CHAT, b"[]", 400),
        (CHAT, b"[" * 100_000, 400),
        (CHAT, b'{"messages": "\xff"}', 400),
        (CHAT, {}, 400),
        (CHAT, {"messages": []}, 400),
        (CHAT, {"messages": [1]}, 400),
        (CHAT, {"messages": [{"role": "king"}]}, 400),
        (CHAT, {"messages": [{"role": ["user"]}]}, 400),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400),
        (CHAT, {"messages": [{"role": "user"}], "stream": "yes"}, 400),
        (CHAT, {"messages": [{"role": "user"}], "max_tokens": 0}, 400),
        (CHAT, {"messages": [{"role": "user"}], "max_tokens": 1e9}, 400),
        (CHAT, {"messages": [{"role": "user"}], "n": 2}, 400),
        (CHAT, {"messages": [{"role": "user"}], "tools": {}}, 200),
        (CHAT, {"messages": [{"role": "user"}], "tools": ["a"]}, 400),
        (CHAT, {"messages": [{"role": "user"}], "vllm_xargs": []}, 400),
        (CHAT, {"messages": [{"role": "user"}], "cache_salt": ""}, 400),
        (CHAT, {"messages": [{"role": "user"}], "saga_emulate": 1}, 400),
        (
            CHAT,
            {"messages": [{"role": "user"}], "saga_emulate": {"output_tokens": 0}},
            400,
        ),
        (
            CHAT,
            {"messages": [{"role": "user"}], "vllm_xargs": {"saga_ttl_s": "soon"}},
            400,
        ),
        ("/v1/completions", {"prompt": {}}, 400),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 200),
        ("/v1/responses", {"input": []}, 400),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_none"}, 404),
        ("/v1/responses/resp_none", None, 404),
        ("/v1/embeddings", {"input": []}, 400),
        ("/v1/embeddings", {"input": "a", "dimensions": 1 << 20}, 400),
        ("/v1/embeddings", {"input": [[1, 2], [3]]}, 200),
        ("/tokenize", {}, 400),
        ("/v1/nothing", {}, 404),
        ("/", None, 404),
        (CHAT, None, 405),
        ("/health", {}, 405),
    ],
)
def test_statuses(engine: Running, path: str, body: Any, status: int) -> None:
    found, answer = call(engine, path, body)
    assert found == status, answer
    if status >= 400:
        error = answer["error"]
        assert error["code"] == status
        assert isinstance(error["message"], str) and error["type"].endswith("Error")


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/messages", {"messages": []}, 400, "invalid_request_error"),
        ("/v1/messages", {"max_tokens": 5, "messages": []}, 400, "invalid_request_error"),
        (
            "/v1/messages",
            {"max_tokens": 5, "messages": [{"role": "x"}]},
            400,
            "invalid_request_error",
        ),
        ("/v1/messages/none", {}, 404, "not_found_error"),
        ("/v1/messages", None, 405, "invalid_request_error"),
    ],
)
def test_anthropics_form_of_errors(
    engine: Running, path: str, body: Any, status: int, kind: str
) -> None:
    found, answer = call(engine, path, body)
    assert (found, answer["type"], answer["error"]["type"]) == (status, "error", kind)
