"""What is passed through without being scheduled, when its engine fails."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec
import pytest
from aiohttp import web
from tests.gateway.live import fetch, gateway
from tests.gateway.servers import serve

EMBEDDINGS = "/v1/embeddings"


async def breaking(request: web.Request) -> web.StreamResponse:
    """Breaks off its answers after as many bytes as the body asks for."""
    if request.path != EMBEDDINGS:
        return web.json_response({"data": []})
    length = msgspec.json.decode(await request.read())["bytes"]
    response = web.StreamResponse(headers={"content-length": "100"})
    assert request.transport is not None
    if length is not None:
        await response.prepare(request)
        await response.write(b"x" * length)
        await asyncio.sleep(0.02)
    request.transport.abort()
    return response


async def ask_it(length: int | None) -> tuple[int, bytes]:
    async with serve(breaking) as url:
        with gateway(engines=[url]) as live:
            async with asyncio.timeout(10):
                while (await fetch(f"{live.url}/readyz"))[0] != 200:
                    await asyncio.sleep(0.01)
            return (await fetch(live.url + EMBEDDINGS, {"bytes": length}))[:2]


@pytest.mark.parametrize("length", [None, 0])
def test_an_answer_that_never_began_is_an_error(length: int | None) -> None:
    status, data = asyncio.run(ask_it(length))
    assert status == 502
    assert "the connection broke" in msgspec.json.decode(data)["error"]["message"]


def test_half_an_answer_does_not_look_like_a_whole_one() -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        asyncio.run(ask_it(50))
