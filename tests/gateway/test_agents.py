"""Agents as they come: what they send beside the APIs, over several steps and with sub-agents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.keyring import keyed
from tests.gateway.live import MODEL, Live, ask, fetch, gateway

SYSTEM = "You are a careful engineer. " * 60


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with gateway(engines=2, engine_options={"speed": 500.0}) as one:
        yield one
        one.check_nothing_is_lost()


@dataclass
class Agent:
    """One agent's conversation, and what came back with its steps."""

    url: str
    name: str
    headers: Mapping[str, str]
    steps: list[Mapping[str, str]] = field(default_factory=list)
    """The answers' headers."""
    cached: list[int] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.said.append({"role": "user", "content": f"I am {self.name}. " * 30})

    def step(self) -> None:
        """Asks, streaming, and appends the answer and the result of the tool."""
        path, body = self.ask()
        headers = dict(self.headers)
        status, data, told = asyncio.run(
            fetch(self.url + path, {"model": MODEL, "stream": True, **body}, headers=headers)
        )
        told = {name.lower(): value for name, value in told.items()}
        assert (status, told["content-type"]) == (200, "text/event-stream; charset=utf-8"), data
        self.steps.append(told)
        lines = [line.removeprefix(b"data: ") for line in data.splitlines() if b"data: {" in line]
        self.hear([msgspec.json.decode(line) for line in lines])

    def ask(self) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError

    def hear(self, events: list[Any]) -> None:
        raise NotImplementedError

    def told(self, header: str) -> set[str]:
        return {step[f"x-saga-{header}"] for step in self.steps}


class ClaudeCode(Agent):
    def ask(self) -> tuple[str, dict[str, Any]]:
        user = {"device_id": "d" * 64, "account_uuid": "", "session_id": session_of(self.headers)}
        tools = [{"name": "Bash", "input_schema": {"type": "object"}}]
        return "/v1/messages?beta=true", {
            "max_tokens": 400,
            "system": [{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}],
            "tools": tools,
            "messages": self.said,
            "metadata": {"user_id": msgspec.json.encode(user).decode()},
        }

    def hear(self, events: list[Any]) -> None:
        text = "".join(event["delta"].get("text", "") for event in events if "delta" in event)
        calls = [event["content_block"] for event in events if "content_block" in event]
        self.cached.append(events[0]["message"]["usage"]["cache_read_input_tokens"])
        answer = [{"type": "text", "text": text}, calls[-1]]
        result = {"type": "tool_result", "tool_use_id": calls[-1]["id"], "content": "a b c"}
        self.said += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": [result]},
        ]


class Codex(Agent):
    def ask(self) -> tuple[str, dict[str, Any]]:
        return "/v1/responses", {
            "instructions": SYSTEM,
            "input": self.said,
            "tools": [{"type": "function", "name": "shell", "strict": False, "parameters": {}}],
            "parallel_tool_calls": False,
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": session_of(self.headers),
        }

    def hear(self, events: list[Any]) -> None:
        done = events[-1]["response"]
        self.cached.append(done["usage"]["input_tokens_details"]["cached_tokens"])
        output = {"type": "function_call_output", "call_id": done["output"][-1]["call_id"]}
        self.said += [*done["output"], {**output, "output": "a b c"}]


class OpenCode(Agent):
    def ask(self) -> tuple[str, dict[str, Any]]:
        return "/v1/chat/completions", {
            "messages": [{"role": "system", "content": SYSTEM}, *self.said],
            "tools": [{"type": "function", "function": {"name": "bash", "parameters": {}}}],
            "stream_options": {"include_usage": True},
        }

    def hear(self, events: list[Any]) -> None:
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        self.cached.append(events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"])
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        text = "".join(delta.get("content", "") for delta in deltas)
        self.said += [
            {"role": "assistant", "content": text, "tool_calls": calls},
            {"role": "tool", "tool_call_id": calls[0]["id"], "content": "a b c"},
        ]


def session_of(headers: Mapping[str, str]) -> str:
    return next(value for name, value in headers.items() if name.endswith("session-id"))


# ---- how each says who it is: itself, and its sub-agent


def claude_code(session: str, agent: str | None = None) -> dict[str, str]:
    headers = {
        "user-agent": "claude-cli/2.1.120 (external, cli)",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "x-app": "cli",
        "x-stainless-retry-count": "0",
        "x-claude-code-session-id": session,
        "x-claude-code-request-class": "main" if agent is None else "subagent",
        "x-claude-code-prev-tool-durations": "Bash=742;Read=9",
    }
    return headers if agent is None else {**headers, "x-claude-code-agent-id": agent}


def codex(session: str, agent: str | None = None) -> dict[str, str]:
    headers = {
        "user-agent": "codex_cli_rs/0.150.0 (Linux 6.1; x86_64) unknown",
        "originator": "codex_cli_rs",
        "session-id": session,
        "thread-id": session if agent is None else agent,
        "x-client-request-id": session,
        "x-codex-turn-metadata": '{"turn_id":"t1","request_kind":"turn"}',
    }
    if agent is None:
        return headers
    return {**headers, "x-codex-parent-thread-id": session, "x-openai-subagent": "collab_spawn"}


def opencode(session: str, agent: str | None = None) -> dict[str, str]:
    headers = {"user-agent": "opencode/1.18.20 ai-sdk/5.0 runtime/bun/1.3"}
    if agent is None:
        return {**headers, "x-session-id": session, "x-session-affinity": session}
    own = {"x-session-id": agent, "x-session-affinity": agent}
    return {**headers, **own, "x-parent-session-id": session}


HARNESSES = [
    (ClaudeCode, claude_code, "claude-code", "{root}:{agent}"),
    (Codex, codex, "codex", "{agent}"),
    (OpenCode, opencode, "opencode", "{agent}"),
]


def workflows(url: str, key: dict[str, str] | None = None) -> dict[str, list[str]]:
    """Sessions by workflow, as the gateway tells them."""
    _, document, _ = ask(f"{url}/v1/saga/workflows", headers=key)
    return {
        one["id"]: sorted(session["id"] for session in one["sessions"])
        for one in document["workflows"]
    }


@pytest.mark.parametrize(("kind", "headers", "source", "child"), HARNESSES)
def test_an_agent_stays_where_its_kv_is(
    live: Live, kind: type[Agent], headers: Any, source: str, child: str
) -> None:
    """Four agents take turns; every step but the first finds its prompt in the cache."""
    agents = [kind(live.url, f"{source}-{n}", headers(f"{source}-{n}")) for n in range(4)]
    for _ in range(4):
        for agent in agents:
            agent.step()
    for agent in agents:
        assert len(agent.told("engine")) == 1
        assert (agent.told("session-id"), agent.told("session-source")) == ({agent.name}, {source})
        assert agent.cached == sorted(agent.cached)
        assert all(agent.cached[1:])
    engines = {name for agent in agents for name in agent.told("engine")}
    assert len(engines) == 2, "else they stayed for want of another engine"


@pytest.mark.parametrize(("kind", "headers", "source", "child"), HARNESSES)
def test_a_sub_agent_is_a_session_of_its_parents_workflow(
    live: Live, kind: type[Agent], headers: Any, source: str, child: str
) -> None:
    root, agent = f"{source}-root", f"{source}-explorer"
    main = kind(live.url, root, headers(root))
    sub = kind(live.url, agent, headers(root, agent))
    main.step()
    for _ in range(3):
        sub.step()
    main.step()
    name = child.format(root=root, agent=agent)
    assert sub.told("session-id") == {name}
    assert main.told("session-id") == {root}
    assert len(sub.told("engine")) == len(main.told("engine")) == 1
    assert workflows(live.url)[root] == sorted([root, name])


def test_an_auxiliary_call_of_claude_code_leaves_the_session_alone(live: Live) -> None:
    """A title for the terminal says nothing about the conversation's next step."""
    main = ClaudeCode(live.url, "titled", claude_code("titled"))
    main.step()
    asked = {**claude_code("titled"), "x-claude-code-request-class": "auxiliary"}
    ClaudeCode(live.url, "title", asked).step()
    assert workflows(live.url)["titled"] == ["titled"]
    main.step()
    assert len(main.told("engine")) == 1
    assert main.cached[1] > 0


def test_the_last_step_ends_the_workflow(live: Live) -> None:
    main = OpenCode(live.url, "short", {"x-saga-session-id": "short", "x-saga-workflow-id": "w"})
    main.step()
    assert workflows(live.url)["w"] == ["short"]
    main.headers = {**main.headers, "x-saga-final": "true"}
    main.step()
    assert "w" not in workflows(live.url)


def test_two_tenants_with_the_same_ids_stay_apart(tmp_path: Path) -> None:
    with keyed(tmp_path, "blue", "red") as locked:
        live = locked.live
        agents = {
            tenant: ClaudeCode(live.url, tenant, {**claude_code("same"), **key})
            for tenant, key in locked.tenants.items()
        }
        for _ in range(3):
            for agent in agents.values():
                agent.step()
        for tenant, agent in agents.items():
            key = locked.tenants[tenant]
            assert agent.told("session-id") == {"same"}
            assert len(agent.told("engine")) == 1
            assert workflows(live.url, key) == {"same": ["same"]}
            url = f"{live.url}/v1/saga/decisions?session=same"
            decisions = ask(url, headers=key)[1]["decisions"]
            assert {one["session"] for one in decisions} == {f"{tenant}/same"}
        sessions = live.gateway.host.scheduler.state.sessions
        assert sorted(sessions) == ["blue/same", "red/same"]
        owners = {session.workflow.tenant.id for session in sessions.values()}
        assert owners == {"blue", "red"}


def test_no_tenant_reads_or_continues_anothers_response(tmp_path: Path) -> None:
    with keyed(tmp_path, "blue", "red") as locked:
        blue, red = locked.tenants["blue"], locked.tenants["red"]
        url = f"{locked.live.url}/v1/responses"
        first = ask(url, {"model": MODEL, "input": "A secret."}, headers=blue)[1]["id"]
        more = {"model": MODEL, "input": "What did I say?", "previous_response_id": first}
        assert ask(f"{url}/{first}", headers=blue)[0] == 200
        assert ask(url, more, headers=blue)[0] == 200
        assert ask(f"{url}/{first}", headers=red)[0] == 404
        assert ask(f"{url}/{first}/cancel", {}, headers=red)[0] == 404
        status, document, _ = ask(url, more, headers=red)
        assert (status, document["error"]["param"]) == (404, "previous_response_id")
