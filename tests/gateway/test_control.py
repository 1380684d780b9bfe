"""``/v1/saga/...``: workflows, graphs, engines and decisions, and who may see which."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.keyring import Keyed, keyed
from tests.gateway.live import Live, ask, chat, engine, gateway
from tests.serving import wait_until

from saga.core.forecast import Progress
from saga.gateway.control import MAX_LISTED

CHAT = "/v1/chat/completions"
LOOP: dict[str, Any] = {
    "nodes": [{"id": "think"}, {"id": "act", "kind": "tool", "tool": "bash"}],
    "edges": [
        {"source": "think", "target": "act", "p": 0.75},
        {"source": "act", "target": "think"},
    ],
}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with gateway(engines=2, engine_options={"speed": 500.0}) as one:
        yield one
        one.check_nothing_is_lost()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with keyed(tmp_path_factory.mktemp("keys"), "blue", "red") as one:
        yield one


def control(live: Live, path: str, *args: Any, **options: Any) -> tuple[int, Any]:
    status, document, headers = ask(f"{live.url}/v1/saga/{path}", *args, **options)
    assert headers["Content-Type"] == "application/json"
    if status >= 400:
        assert set(document["error"]) == {"message", "type", "param", "code"}
        assert document["error"]["code"] == status
    return status, document


# ---- workflows


def test_a_workflow_from_its_declaration_to_its_end(live: Live) -> None:
    declared = {
        "workflow_id": "fix #7",
        "agent_type": "coder",
        "mean_steps": 12.5,
        "deadline_ms": 60_000,
        "priority": 2.5,
    }
    status, told = control(live, "workflows", declared)
    assert (status, told["id"], told["agent_type"]) == (201, "fix #7", "coder")
    assert told["sessions"] == []
    asked = {"x-saga-workflow-id": "fix #7", "x-saga-session-id": "main"}
    assert ask(live.url + CHAT, chat("x"), headers=asked)[0] == 200
    status, told = control(live, "workflows/fix%20%237")
    assert [session["id"] for session in told["sessions"]] == ["main"]
    assert told["sessions"][0]["context_tokens"] > 0
    assert told["sessions"][0].pop("forecast")["steps_left"]["p50"] >= 0
    assert told in control(live, "workflows")[1]["workflows"]
    known = live.gateway.host.scheduler.state.workflows["default/fix #7"]
    assert (known.agent_type, known.deadline) == ("default/coder", known.submitted + 60_000_000)
    assert known.priority == 2.5
    assert control(live, "workflows/fix%20%237/finish", {}) == (200, {"finished": "fix #7"})
    assert control(live, "workflows/fix%20%237")[0] == 404
    assert "default/fix #7" not in live.gateway.host.scheduler.state.workflows


def test_a_workflow_runs_once_at_a_time(live: Live) -> None:
    assert control(live, "workflows", {"workflow_id": "once"})[0] == 201
    assert control(live, "workflows", {"workflow_id": "once"})[0] == 409
    assert control(live, "workflows/once", method="DELETE")[0] == 200
    assert control(live, "workflows", {"workflow_id": "once"})[0] == 201


def test_an_id_may_contain_a_slash(live: Live) -> None:
    assert control(live, "workflows", {"workflow_id": "a/b%2F"})[0] == 201
    assert control(live, "workflows/a/b%252F")[0] == 404
    assert control(live, "workflows/a%2Fb%252F", method="DELETE")[0] == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        ([], "Expected `object`"),
        ({}, "workflow_id"),
        ({"workflow_id": ""}, "length >= 1"),
        ({"workflow_id": "x" * 257}, "length <= 256"),
        ({"workflow_id": "a\nb"}, "matching regex"),
        ({"workflow_id": "a", "mean_steps": 0}, "mean_steps"),
        ({"workflow_id": "a", "deadline_ms": -1}, "deadline_ms"),
        ({"workflow_id": "a", "priority": 0.09}, "priority"),
        ({"workflow_id": "a", "priority": 10.01}, "priority"),
        ({"workflow_id": "a", "priority": "2"}, "priority"),
        ({"workflow_id": "a", "deadlin_ms": 5}, "deadlin_ms"),
    ],
)
def test_declarations_that_cannot_be_read(live: Live, body: Any, words: str) -> None:
    status, document = control(live, "workflows", body, method="POST")
    assert status == 400
    assert words in document["error"]["message"]


def test_declared_workflows_are_not_without_number() -> None:
    with gateway(engines=0, settings={"sessions.max_sessions": 2}) as live:
        for name, expected in (("a", 201), ("b", 201), ("c", 429)):
            assert control(live, "workflows", {"workflow_id": name})[0] == expected
        assert control(live, "workflows/a", method="DELETE")[0] == 200
        assert control(live, "workflows", {"workflow_id": "c"})[0] == 201


# ---- graphs


def test_a_graph_tells_how_long_workflows_of_its_name_take(live: Live) -> None:
    four = pytest.approx(4.0)
    expected = {"name": "fixer", "mean_steps": four, "critical_steps": four}
    assert control(live, "graphs/fixer", LOOP, method="PUT") == (201, expected)
    assert control(live, "graphs/fixer", LOOP, method="PUT") == (200, expected)
    graphs = control(live, "graphs")[1]["graphs"]
    assert [(one["tenant"], one["name"]) for one in graphs] == [("default", "fixer")]
    assert graphs[0]["graph"]["edges"][0] == LOOP["edges"][0]
    assert live.gateway.sessions.declared["default/fixer"] == pytest.approx(4.0)
    endless = {**LOOP, "edges": [{"source": "think", "target": "think"}]}
    assert control(live, "graphs/fixer", endless, method="PUT")[1]["mean_steps"] is None
    assert "default/fixer" not in live.gateway.sessions.declared, "the old number is no more true"


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("g", {"nodes": []}, "length >= 1"),
        ("g", {"nodes": [{"id": "a", "kind": "king"}]}, "king"),
        ("g", {"nodes": [{"id": str(n)} for n in range(257)]}, "length <= 256"),
        ("g", {**LOOP, "start": ["nowhere"]}, "node 'nowhere' is not there"),
        ("g", {**LOOP, "edges": [{"source": "think", "target": "act", "p": 2}]}, "<= 1"),
        ("g" * 257, LOOP, "256"),
        ("a%0Ab", LOOP, "printable"),
        ("", LOOP, "printable"),
    ],
)
def test_graphs_that_cannot_be_used(live: Live, name: str, body: Any, words: str) -> None:
    status, document = control(live, f"graphs/{name}", body, method="PUT")
    assert status == 400
    assert words in document["error"]["message"]


# ---- engines


def test_engines_come_and_go(live: Live) -> None:
    def states() -> dict[str, str]:
        return {one["name"]: one["state"] for one in control(live, "engines")[1]["engines"]}

    before = states()
    assert list(before.values()) == ["up", "up"]
    with engine() as (url, _):
        status, added = control(live, "engines", {"url": f"{url}/"})
        assert (status, added["name"]) == (201, url.removeprefix("http://"))
        name = added["name"]
        wait_until(lambda: states()[name] == "up")
        assert control(live, "engines", {"url": url})[1] == added, "it is known already"
        assert control(live, f"engines/{name}/drain", {})[0] == 200
        assert states()[name] == "draining"
        assert control(live, f"engines/{name}", method="DELETE") == (200, {"removed": name})
        assert states() == before


def test_an_engine_is_described(live: Live) -> None:
    one = control(live, "engines")[1]["engines"][0]
    assert {"control", "hints", "metrics"} <= set(one["capabilities"])
    assert one["models"] == ["saga-emulated"]
    assert one["kv_capacity_tokens"] > 0
    assert one["degraded"], "the emulated engine lacks something, and that is told"
    assert one["breaker"] == "closed"


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://user:secret@host", "host:1", ""])
def test_engines_that_have_no_address(live: Live, url: str) -> None:
    status, document = control(live, "engines", {"url": url})
    assert (status, document["error"]["param"]) == (400, "url")
    assert "secret" not in document["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "engines/nobody"), ("POST", "engines/nobody/drain"), ("POST", "engines/a/b/c")],
)
def test_engines_that_are_not_there(live: Live, method: str, path: str) -> None:
    assert control(live, path, {}, method=method)[0] == 404


# ---- decisions


def test_decisions_by_session_the_newest_first(live: Live) -> None:
    for name in ("first", "second", "first"):
        asked = {"x-saga-session-id": name}
        assert ask(live.url + CHAT, chat("why here?"), headers=asked)[0] == 200
    found = control(live, "decisions?session=first")[1]["decisions"]
    assert {one["session"] for one in found} == {"default/first"}
    placed = [one for one in found if one["action"] == "Dispatch"]
    assert [one["reason"] for one in placed] == ["affinity", "new session or no KV left"]
    assert len({one["engine"] for one in placed}) == 1
    times = [one["at_us"] for one in control(live, "decisions")[1]["decisions"]]
    assert times == sorted(times, reverse=True)
    assert len(control(live, "decisions?limit=2")[1]["decisions"]) == 2
    assert control(live, "decisions?session=nobody")[1] == {"decisions": []}


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", "9" * 5_000, "%C2%B2", "1.5"])
def test_limits_that_are_none(live: Live, limit: str) -> None:
    assert control(live, f"decisions?limit={limit}")[0] == 400
    assert control(live, f"decisions?limit={MAX_LISTED}")[0] == 200


# ---- who may see and change what


def test_a_tenant_sees_and_ends_its_own_workflows(locked: Keyed) -> None:
    live, blue, red = locked.live, locked.tenants["blue"], locked.tenants["red"]
    for key in (blue, red):
        assert control(live, "workflows", {"workflow_id": "same"}, headers=key)[0] == 201
    assert control(live, "workflows", {"workflow_id": "mine"}, headers=blue)[0] == 201
    seen = control(live, "workflows", headers=red)[1]["workflows"]
    assert [(one["tenant"], one["id"]) for one in seen] == [("red", "same")]
    for name in ("mine", "blue%2Fmine", "blue%2Fsame"):
        assert control(live, f"workflows/{name}", headers=red)[0] == 404
        assert control(live, f"workflows/{name}", method="DELETE", headers=red)[0] == 404
    assert control(live, "workflows/same", method="DELETE", headers=red)[0] == 200
    assert control(live, "workflows/same", headers=blue)[0] == 200


def test_a_tenant_sees_its_own_graphs_and_decisions(locked: Keyed) -> None:
    live, blue, red = locked.live, locked.tenants["blue"], locked.tenants["red"]
    assert control(live, "graphs/secret", LOOP, method="PUT", headers=blue)[0] == 201
    assert ask(live.url + CHAT, chat("x"), headers={**blue, "x-saga-session-id": "s"})[0] == 200
    assert control(live, "graphs", headers=red)[1] == {"graphs": [], "learned": []}
    for query in ("", "?session=s", "?session=blue/s"):
        assert control(live, f"decisions{query}", headers=red)[1] == {"decisions": []}
    assert control(live, "decisions?session=s", headers=blue)[1]["decisions"]


def test_a_graph_that_is_declared_again_counts_once(live: Live) -> None:
    forecasts = live.gateway.foresight.forecasts
    for _ in range(3):
        assert control(live, "graphs/again", LOOP, method="PUT")[0] in (200, 201)
    declared = forecasts.of("default/again")
    chances = dict(declared.next_labels(Progress()))
    assert chances == pytest.approx({"bash": 0.75, "none": 0.25}, abs=0.1)
    other = {"nodes": [{"id": "only"}]}
    assert control(live, "graphs/again", other, method="PUT")[0] == 200
    anew = forecasts.of("default/again")
    assert anew is not declared
    assert anew.next_labels(Progress()) == {"none": pytest.approx(1)}


def test_what_was_learned_is_told_to_its_tenant_only(locked: Keyed) -> None:
    live, blue, red = locked.live, locked.tenants["blue"], locked.tenants["red"]
    headers = {**blue, "x-saga-session-id": "learner", "x-saga-agent": "coder"}
    for text in ("x", "x y"):
        assert ask(live.url + CHAT, chat(text), headers=headers)[0] == 200
    assert "coder" in control(live, "graphs", headers=blue)[1]["learned"]
    assert control(live, "graphs", headers=red)[1]["learned"] == []
    assert "blue/coder" in control(live, "graphs", headers=locked.admin)[1]["learned"]
    told = control(live, "graphs/coder", headers=blue)[1]
    assert told["declared"] is None
    assert sum(node["steps"] for node in told["learned"]["nodes"]) == 1, "one was left for another"
    assert told == {
        **control(live, "graphs/blue%2Fcoder", headers=locked.admin)[1],
        "name": "coder",
    }
    for name in ("coder", "blue%2Fcoder", "nobody"):
        assert control(live, f"graphs/{name}", headers=red)[0] == 404
    assert control(live, "graphs/coder", LOOP, method="PUT", headers=blue)[0] == 201
    assert control(live, "graphs/coder", headers=blue)[1]["declared"]["nodes"]


def test_an_administrator_sees_everything_and_names_the_tenant(locked: Keyed) -> None:
    live, admin = locked.live, locked.admin
    blue = locked.tenants["blue"]
    assert control(live, "workflows", {"workflow_id": "seen"}, headers=blue)[0] == 201
    seen = control(live, "workflows", headers=admin)[1]["workflows"]
    assert ("blue", "seen") in [(one["tenant"], one["id"]) for one in seen]
    assert control(live, "workflows/seen", headers=admin)[0] == 404
    assert control(live, "workflows/blue%2Fseen", headers=admin)[0] == 200
    assert control(live, "workflows/blue%2Fseen", method="DELETE", headers=admin)[0] == 200
    assert ask(live.url + CHAT, chat("x"), headers={**blue, "x-saga-session-id": "s"})[0] == 200
    assert control(live, "decisions?session=blue/s", headers=admin)[1]["decisions"]


def test_an_administrator_has_no_workflows(locked: Keyed) -> None:
    live, admin = locked.live, locked.admin
    assert control(live, "workflows", {"workflow_id": "x"}, headers=admin)[0] == 403
    assert control(live, "graphs/x", LOOP, method="PUT", headers=admin)[0] == 403


def test_engines_are_an_administrators(locked: Keyed) -> None:
    live, blue, admin = locked.live, locked.tenants["blue"], locked.admin
    with engine() as (url, _):
        name = url.removeprefix("http://")
        assert control(live, "engines", {"url": url}, headers=blue)[0] == 403
        assert control(live, f"engines/{name}", method="DELETE", headers=blue)[0] == 403
        assert control(live, "engines", {"url": url}, headers=admin)[0] == 201
        assert control(live, f"engines/{name}/drain", {}, headers=blue)[0] == 403
        assert control(live, f"engines/{name}", method="DELETE", headers=admin)[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "nothing"),
        ("GET", "workflows/"),
        ("PUT", "workflows"),
        ("POST", "graphs"),
        ("POST", "decisions"),
        ("POST", "retain"),
        ("DELETE", "workflows"),
    ],
)
def test_what_is_not_here(live: Live, method: str, path: str) -> None:
    """An engine's control routes have the same prefix: they are not for clients."""
    assert control(live, path, {} if method != "GET" else None, method=method)[0] == 404


def test_two_gateways_keep_their_graphs_apart(tmp_path: Path, live: Live) -> None:
    with keyed(tmp_path, "blue") as other:
        assert control(other.live, "graphs", headers=other.admin)[1] == {
            "graphs": [],
            "learned": [],
        }
