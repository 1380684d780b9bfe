"""The control routes of the API server, with the real scheduler behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.e2e.plugin.engine import BLOCK, FakeEngine, tokens
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
from vllm.v1.engine.core import EngineCore
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

from saga.engine.vllm import METHOD, endpoint, register


class Core:
    """As much of vLLM's engine as the method that is added to it needs."""

    def __init__(self, engine: FakeEngine) -> None:
        self.scheduler = engine.scheduler


class OneEngine:
    """vLLM 0.26's client of the engines: tells the answer of one. Results travel as in vLLM."""

    def __init__(self, engines: Sequence[FakeEngine]) -> None:
        self.cores = [Core(engine) for engine in engines]

    async def call_utility_async(self, method: str, op: str, body: Any) -> Any:
        return self._call(self.cores[0], method, op, body)

    def _call(self, core: Core, method: str, op: str, body: Any) -> Any:
        result = UtilityResult(getattr(EngineCore, method)(core, op, body))
        sent = MsgpackEncoder().encode(result)
        return MsgpackDecoder(UtilityResult).decode(sent).result


class AllEngines(OneEngine):
    """The client of later versions."""

    async def call_utility_all_async(self, method: str, op: str, body: Any) -> list[Any]:
        return [self._call(core, method, op, body) for core in self.cores]


class DeadEngine:
    async def call_utility_async(self, method: str, op: str, body: Any) -> Any:
        raise RuntimeError("secret details")


class Client:
    """What vLLM gives to endpoint plugins."""

    def __init__(self, core: Any) -> None:
        self.engine_core = core


def ask(core: Any, op: str, body: Any, *, method: str = "POST") -> tuple[int, Any]:
    register()

    async def scenario() -> tuple[int, Any]:
        app = FastAPI()
        plugin = endpoint()
        assert isinstance(plugin, EndpointPlugin)
        plugin.attach_router(app)
        await plugin.init_state(Client(core), app.state, None)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            kind = {"content": body} if isinstance(body, bytes) else {"json": body}
            answer = await client.request(method, f"/v1/saga/{op}", **kind)
            return answer.status_code, answer.json() if answer.content else None

    return asyncio.run(scenario())


@pytest.fixture
def engines() -> list[FakeEngine]:
    """Two data-parallel engines; each knows one session."""
    made = [FakeEngine(64), FakeEngine(64)]
    for name, engine in zip("ab", made, strict=True):
        engine.run(tokens(name, 20 * BLOCK), session=f"t/{name}", ttl_s=60)
    return made


@pytest.mark.parametrize("client", [OneEngine, AllEngines])
def test_one_engine(client: type[OneEngine], engines: list[FakeEngine]) -> None:
    core = client(engines[:1])
    whole = {"session": "t/a", "resident_tokens": 20 * BLOCK}
    assert ask(core, "retain", {"session": "t/a", "ttl_s": 5, "score": 0.5}) == (200, whole)
    assert ask(core, "stats", {})[1] == engines[0].scheduler.stats()
    assert ask(core, "release", {"session": "t/a"}) == (200, whole)


def test_of_many_engines_the_one_that_knows_the_session_answers(engines: list[FakeEngine]) -> None:
    for name in "ab":
        status, answer = ask(AllEngines(engines), "stats", {"session": f"t/{name}"})
        assert (status, answer["resident_tokens"]) == (200, 20 * BLOCK)
    status, answer = ask(AllEngines(engines), "stats", {"session": "t/c"})
    assert (status, answer["error"]["code"]) == (404, 404)


def test_the_figures_of_many_engines_are_summed_and_told_one_by_one(
    engines: list[FakeEngine],
) -> None:
    engines[1].run(tokens("c", 20 * BLOCK), session="t/c")
    answer = ask(AllEngines(engines), "stats", {})[1]
    assert answer["engines"] == [engine.scheduler.stats() for engine in engines]
    assert (answer["num_sessions"], answer["kv_capacity_tokens"]) == (3, 2 * 63 * BLOCK)
    assert answer["events_endpoint"] is None


def test_a_preempted_request_is_found_on_whichever_engine_it_is(engines: list[FakeEngine]) -> None:
    name = engines[1].submit(tokens("r", BLOCK), 5, name="chatcmpl-r-1234abcd")
    engines[1].step()
    answer = ask(AllEngines(engines), "preempt", {"request": "r"})
    assert answer == (200, {"request": "r", "applied": True})
    assert engines[1].scheduler.requests[name].num_preemptions == 1


@pytest.mark.parametrize(
    ("op", "body", "status", "kind"),
    [
        ("retain", {"session": "t/a"}, 400, "BadRequestError"),
        ("retain", [], 400, "BadRequestError"),
        ("retain", b"{", 400, "BadRequestError"),
        ("retain", b"\xff", 400, "BadRequestError"),
        ("retain", b"[" * 60_000, 400, "BadRequestError"),
        ("retain", b" " * 100_000, 413, "RequestEntityTooLargeError"),
        ("release", {"session": "t/c"}, 404, "NotFoundError"),
    ],
)
def test_refusals_have_the_form_of_openai(
    engines: list[FakeEngine], op: str, body: Any, status: int, kind: str
) -> None:
    answer = ask(AllEngines(engines), op, body)
    assert answer[0] == status
    error = answer[1]["error"]
    assert (error["type"], error["code"]) == (kind, status)
    assert error["message"]


def test_routes_are_posts_and_no_others(engines: list[FakeEngine]) -> None:
    core = AllEngines(engines)
    assert ask(core, "stats", {}, method="GET")[0] == 405
    assert ask(core, "destroy", {})[0] == 404


def test_an_engine_that_is_dead_is_said_to_be_and_nothing_more() -> None:
    status, answer = ask(DeadEngine(), "stats", {})
    assert status == 503
    assert answer["error"]["message"] == "the engine does not answer: RuntimeError"


def test_the_method_that_is_added_is_none_of_vllms() -> None:
    assert METHOD not in {name for name in vars(EngineCore) if not name.startswith("saga")}
    register()
    register()
    assert callable(getattr(EngineCore, METHOD))
