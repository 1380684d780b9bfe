"""Who is who, harness by harness, in the shapes in which each sends it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.asking import CHAT, ask, numbered, packed

from saga.gateway.identity import Identifier

UUID = "0b6a5b0e-3a3f-4c52-8a53-0d8bba2f8b41"
OTHER = "5f36c286-1111-4222-8333-444455556666"
SDK = {
    "user-agent": "AsyncOpenAI/Python 3.52.0",
    "x-stainless-lang": "python",
    "x-stainless-retry-count": "0",
    "x-request-id": "ingress-1",
    "x-client-request-id": "client-1",
}


@pytest.fixture
def who() -> Identifier:
    return Identifier(new_id=numbered())


# ---- SAGA's own


def test_saga_headers(who: Identifier) -> None:
    told = ask(
        who,
        {
            "X-Saga-Workflow-Id": "w",
            "X-Saga-Session-Id": "s",
            "X-Saga-Parent-Id": "p",
            "X-Saga-Agent": "planner",
            "X-Saga-Final": "true",
            "X-Saga-Deadline-Ms": "1500",
            "X-Saga-Priority": "2.5",
        },
    )
    assert (told.workflow, told.session, told.parent) == ("w", "s", "p")
    assert (told.source, told.confidence) == ("saga", "exact")
    assert (told.agent_type, told.final, told.deadline_us) == ("planner", True, 1_500_000)
    assert told.priority == 2.5
    assert told.kind == "subagent"


CONTEXT = {
    "workflow_id": "w",
    "session_id": "s",
    "parent_id": "p",
    "agent": "planner",
    "final": True,
    "deadline_ms": 1_500,
    "priority": 2.5,
}


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"x-saga-context": packed(CONTEXT)}, {}),
        ({"x-saga-context": packed(CONTEXT) + "=="}, {}),
        ({"x-saga-context": json.dumps(CONTEXT)}, {}),
        ({}, {"saga": CONTEXT}),
    ],
)
def test_saga_context_says_the_same(
    who: Identifier, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    told = ask(who, headers, **fields)
    assert (told.workflow, told.session, told.parent) == ("w", "s", "p")
    assert (told.agent_type, told.final, told.deadline_us) == ("planner", True, 1_500_000)
    assert told.priority == 2.5
    assert told.source == "saga"


def test_what_saga_is_told_beside_the_session_holds_for_any_session(who: Identifier) -> None:
    headers = {
        "x-saga-workflow-id": "task-17",
        "x-saga-agent": "coder",
        "x-saga-final": "1",
        "x-saga-priority": "0.5",
    }
    told = ask(who, {**headers, "x-session-id": "chain"})
    assert (told.workflow, told.session, told.source) == ("task-17", "chain", "x-session-id")
    assert (told.agent_type, told.final, told.priority) == ("coder", True, 0.5)
    inferred = ask(who, headers)
    assert (inferred.workflow, inferred.source) == ("task-17", "lineage")
    assert inferred.priority == 0.5
    assert ask(who, {"x-saga-priority": "3"}).priority == 3.0, "alone"
    assert ask(who).priority is None


def test_equal_conversations_of_two_told_workflows_are_two_sessions(who: Identifier) -> None:
    first = ask(who, {"x-saga-workflow-id": "a"})
    second = ask(who, {"x-saga-workflow-id": "b"})
    assert first.session != second.session
    assert second.workflow == "b"


# ---- the operator's rules


def test_operator_headers_and_mapping() -> None:
    who = Identifier(
        extra_headers=["X-My-Run"],
        mapping={"workflow": "header:x-task", "session": "body:metadata.chain"},
    )
    told = ask(who, {"x-task": "w", "x-my-run": "r"}, metadata={"chain": "c"})
    assert (told.workflow, told.session) == ("w", "c")
    assert (told.source, told.confidence) == ("operator", "exact")
    assert ask(who, {"x-my-run": "r", "x-claude-code-session-id": UUID}).session == "r"
    assert ask(who, {"x-my-run": "r", "x-saga-session-id": "s"}).source == "saga"


def test_operator_may_map_any_field_of_the_body() -> None:
    who = Identifier(mapping={"session": "body:run.id", "parent": "body:run.of"})
    told = ask(who, run={"id": "child", "of": "root"})
    assert (told.session, told.parent, told.workflow) == ("child", "root", "root")


def test_operator_rules_can_change_and_what_is_known_stays(who: Identifier) -> None:
    assert ask(who, {"x-saga-session-id": "r", "x-saga-workflow-id": "w"}).workflow == "w"
    who.configure(extra_headers=["x-my-run"], mapping={})
    told = ask(who, {"x-my-run": "r"})
    assert (told.session, told.workflow, told.source) == ("r", "w", "operator")


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"tenant": "header:x"}, "cannot map 'tenant'"),
        ({"session": "cookie:x"}, "not a location: 'cookie:x'"),
        ({"session": "header:"}, "not a location"),
        ({"session": "body:a..b"}, "not a location"),
    ],
)
def test_operator_mistakes_are_named(mapping: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Identifier(mapping=mapping)


# ---- contracts of programs


@pytest.mark.parametrize("as_text", [False, True])
def test_agentic_context(who: Identifier, as_text: bool) -> None:
    context: Any = {"task_id": "t", "program_id": "p2", "parent_program_id": "p1"}
    context = json.dumps(context) if as_text else context
    told = ask(who, vllm_xargs={"agentic_context": context})
    assert (told.workflow, told.session, told.parent) == ("t", "p2", "p1")
    assert (told.source, told.confidence) == ("agentic_context", "exact")


def test_agentic_context_without_programs(who: Identifier) -> None:
    lead = ask(who, vllm_xargs={"agentic_context": {"task_id": "t"}})
    child = ask(who, vllm_xargs={"agentic_context": {"task_id": "t", "agent_id": "a"}})
    nested = ask(
        who,
        vllm_xargs={
            "agentic_context": {"task_id": "t", "agent_id": "b", "parent_agent_id": "a"},
        },
    )
    told = {"task_id": "t", "agent_id": "c", "parent_program_id": "p", "parent_agent_id": "a"}
    assert ask(who, vllm_xargs={"agentic_context": told}).parent == "p"
    assert (lead.session, lead.parent, lead.workflow) == ("t", None, "t")
    assert (child.session, child.parent, child.workflow) == ("t:a", "t", "t")
    assert (nested.session, nested.parent, nested.workflow) == ("t:b", "t:a", "t")


def test_agent_hint_of_the_body(who: Identifier) -> None:
    root = ask(who, agent_hint={"session_id": "root"})
    child = ask(who, agent_hint={"session_id": "child", "parent_session_id": "root"})
    assert (root.workflow, root.source) == ("root", "agent_hint")
    assert (child.session, child.parent, child.workflow) == ("child", "root", "root")


def test_dynamo_headers_win_over_native_ones(who: Identifier) -> None:
    told = ask(
        who,
        {
            "X-Dynamo-Session-ID": "run:researcher",
            "X-Dynamo-Parent-Session-ID": "run:planner",
            "X-Dynamo-Session-Final": "true",
            "x-claude-code-session-id": UUID,
        },
    )
    assert (told.session, told.parent) == ("run:researcher", "run:planner")
    assert (told.workflow, told.final, told.source) == ("run:planner", True, "dynamo")


def test_dynamo_agent_context_of_older_releases(who: Identifier) -> None:
    context = {
        "session_type_id": "deep_research",
        "session_id": "run-42",
        "trajectory_id": "run-42:researcher",
        "parent_trajectory_id": "run-42:planner",
    }
    told = ask(who, nvext={"agent_context": context})
    assert (told.workflow, told.session) == ("run-42", "run-42:researcher")
    assert (told.parent, told.agent_type) == ("run-42:planner", "deep_research")
    plain = ask(who, nvext={"agent_context": {"session_id": "c", "parent_session_id": "r"}})
    assert (plain.session, plain.parent, plain.workflow) == ("c", "r", "r")


def test_agent_hint_header(who: Identifier) -> None:
    told = ask(who, {"X-Agent-Hint": packed({"session_id": "h", "call_index": 3})})
    assert (told.session, told.source, told.confidence) == ("h", "x-agent-hint", "exact")


# ---- harnesses

CLAUDE = {
    "user-agent": "claude-cli/2.1.139 (external, cli)",
    "x-claude-code-session-id": UUID,
    "x-app": "cli",
    "anthropic-version": "2023-06-01",
    "x-stainless-retry-count": "0",
}


def test_claude_code_and_its_agents(who: Identifier) -> None:
    main = ask(who, CLAUDE, api="messages")
    child = ask(who, {**CLAUDE, "x-claude-code-agent-id": "a1"}, api="messages")
    nested = ask(
        who,
        {**CLAUDE, "x-claude-code-agent-id": "a2", "x-claude-code-parent-agent-id": "a1"},
        api="messages",
    )
    assert (main.workflow, main.session, main.parent) == (UUID, UUID, None)
    assert (child.workflow, child.session, child.parent) == (UUID, f"{UUID}:a1", UUID)
    assert (nested.workflow, nested.session, nested.parent) == (UUID, f"{UUID}:a2", f"{UUID}:a1")
    assert (main.kind, child.kind, nested.kind) == ("main", "subagent", "subagent")
    assert (main.source, main.confidence) == ("claude-code", "high")


def test_claude_code_hints(who: Identifier) -> None:
    told = ask(
        who,
        {
            **CLAUDE,
            "x-claude-code-request-class": "auxiliary",
            "x-claude-code-agent-type": "Explore",
            "x-claude-code-prev-tool-durations": "Bash=742;Read=9;mcp%3Bweird=1",
            "x-claude-code-context-compacted": "1",
        },
    )
    assert (told.kind, told.agent_type) == ("auxiliary", "Explore")
    assert told.tools == (("Bash", 742_000), ("Read", 9_000), ("mcp;weird", 1_000))
    assert told.context_compacted
    assert ask(who, {**CLAUDE, "x-claude-code-compaction": "auto"}).kind == "compaction"
    assert ask(who, {**CLAUDE, "x-claude-code-request-class": "new one"}).kind == "main"


@pytest.mark.parametrize(
    "user_id",
    [
        json.dumps({"device_id": "d", "account_uuid": "", "session_id": UUID}),
        f"user_{'ab' * 32}_account__session_{UUID}",
        f"user_{'ab' * 32}_account_{OTHER}_session_{UUID}",
    ],
)
def test_claude_code_before_it_sent_headers(who: Identifier, user_id: str) -> None:
    told = ask(who, api="messages", metadata={"user_id": user_id})
    assert (told.session, told.source, told.confidence) == (UUID, "claude-code", "high")


def test_a_user_is_no_session(who: Identifier) -> None:
    for fields in ({"metadata": {"user_id": "u-1"}}, {"user": "u-1"}, {"safety_identifier": "u"}):
        assert ask(who, **fields).source == "lineage"


def test_codex(who: Identifier) -> None:
    headers = {
        "user-agent": "codex_cli_rs/0.99.0 (Ubuntu 24.4.0; x86_64)",
        "originator": "codex_cli_rs",
        "session-id": UUID,
        "thread-id": UUID,
        "x-client-request-id": UUID,
        "x-codex-window-id": f"{UUID}:0",
    }
    body = {"model": "m", "input": [], "prompt_cache_key": UUID}
    root = ask(who, headers, body, api="responses")
    child = ask(
        who,
        {
            **headers,
            "thread-id": OTHER,
            "x-codex-parent-thread-id": UUID,
            "x-openai-subagent": "collab_spawn",
        },
        body,
        api="responses",
    )
    assert (root.workflow, root.session, root.parent) == (UUID, UUID, None)
    assert (root.source, root.confidence) == ("codex", "high")
    assert (child.workflow, child.session, child.parent) == (UUID, OTHER, UUID)
    assert (child.kind, child.agent_type) == ("subagent", "collab_spawn")
    compacting = ask(
        who, {**headers, "x-codex-turn-metadata": json.dumps({"request_kind": "compaction"})}
    )
    assert compacting.kind == "compaction"


@pytest.mark.parametrize(
    "headers",
    [
        {"session_id": UUID, "conversation_id": UUID, "user-agent": "codex_cli_rs/0.40.0"},
        {"session_id": UUID, "originator": "codex_vscode"},
        {"session_id": UUID, "thread_id": UUID, "x-codex-turn-metadata": "{}"},
        {"session-id": UUID, "thread-id": UUID, "user-agent": "pi/0.60"},
    ],
)
def test_codex_by_older_names_and_clients_that_copy_it(
    who: Identifier, headers: dict[str, str]
) -> None:
    told = ask(who, headers, api="responses")
    assert (told.workflow, told.session, told.source) == (UUID, UUID, "codex")


def test_unprefixed_names_mean_nothing_from_anybody_else(who: Identifier) -> None:
    assert ask(who, {"session_id": UUID, "user-agent": "curl/8"}).source == "lineage"


def test_deepseek_harness(who: Identifier) -> None:
    root = ask(who, {"x-deepseek-harness-session-id": "r", "x-deepseek-harness-user-id": "u"})
    child = ask(
        who,
        {
            "x-deepseek-harness-session-id": "c",
            "x-deepseek-harness-parent-session-id": "r",
            "x-deepseek-harness-compact": "1",
        },
    )
    grandchild = ask(
        who,
        {"x-deepseek-harness-session-id": "g", "x-deepseek-harness-parent-session-id": "c"},
    )
    assert (root.workflow, root.source) == ("r", "deepseek-harness")
    assert (child.workflow, child.parent, child.kind) == ("r", "r", "compaction")
    assert (grandchild.workflow, grandchild.parent) == ("r", "c")


OPENCODE = {"user-agent": "opencode/1.18.20 ai-sdk/5", "x-session-affinity": "ses_1"}


def test_opencode_finds_the_root_by_parents(who: Identifier) -> None:
    root = ask(who, {**OPENCODE, "X-Session-Id": "ses_1"})
    child = ask(
        who,
        {
            **OPENCODE,
            "x-session-affinity": "ses_2",
            "X-Session-Id": "ses_2",
            "x-parent-session-id": "ses_1",
        },
    )
    nested = ask(who, {**OPENCODE, "x-session-affinity": "ses_3", "x-parent-session-id": "ses_2"})
    again = ask(who, {**OPENCODE, "x-session-affinity": "ses_3"})
    assert (root.workflow, root.session, root.source) == ("ses_1", "ses_1", "opencode")
    assert (child.workflow, child.session, child.parent) == ("ses_1", "ses_2", "ses_1")
    assert (nested.workflow, nested.parent) == ("ses_1", "ses_2")
    assert (again.workflow, again.parent) == ("ses_1", "ses_2")


def test_opencode_provider_and_the_release_that_sent_nothing(who: Identifier) -> None:
    headers = {
        "user-agent": "opencode/1.18.10",
        "x-opencode-session": "ses_9",
        "x-opencode-request": "msg_1",
        "x-opencode-project": "p",
        "x-opencode-client": "cli",
    }
    assert ask(who, headers).session == "ses_9"
    assert ask(who, {"x-session-affinity": "ses_8", "x-session-id": "ses_8"}).source == "opencode"
    silent = {"user-agent": "opencode/1.18.17"}
    first = ask(who, silent)
    messages = [
        *CHAT["messages"],
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "go on"},
    ]
    second = ask(who, silent, messages=messages)
    assert first.source == "lineage"
    assert second.session == first.session


def test_openhands(who: Identifier) -> None:
    told = ask(who, {**SDK, "x-litellm-session-id": UUID})
    assert (told.workflow, told.session, told.source) == (UUID, UUID, "litellm")


def test_litellm_names(who: Identifier) -> None:
    told = ask(
        who,
        {"x-litellm-trace-id": "w", "x-litellm-session-id": "s", "x-parent-session-id": "p"},
    )
    assert (told.workflow, told.session, told.parent) == ("w", "s", "p")


@pytest.mark.parametrize("header", ["X-Session-ID", "x-cagent-session-id", "x-bf-session-id"])
def test_harbor_and_vendors(who: Identifier, header: str) -> None:
    told = ask(who, {**SDK, header: "trial-0001"})
    assert (told.workflow, told.session) == ("trial-0001", "trial-0001")
    vendor = header != "X-Session-ID"
    assert told.source == ("x-vendor-session-id" if vendor else "x-session-id")
    assert told.confidence == ("medium" if vendor else "high")


def test_vendors_need_a_plausible_value_and_a_parent_is_no_session(who: Identifier) -> None:
    for headers in ({"x-a-session-id": "1"}, {"x-a-parent-session-id": "12345678"}):
        assert ask(who, headers).source == "lineage"
    both = {"x-c-session-id": "cccccccc", "x-a-session-id": "1", "x-b-session-id": "bbbbbbbb"}
    assert ask(who, both).session == "bbbbbbbb"


def test_helicone_paths_are_a_tree(who: Identifier) -> None:
    headers = {"Helicone-Session-Id": "h"}
    root = ask(who, {**headers, "Helicone-Session-Path": "/"})
    deep = ask(who, {**headers, "Helicone-Session-Path": "/plan/search"})
    high = ask(who, {**headers, "Helicone-Session-Path": "/plan"})
    assert (root.session, root.parent) == ("h", None)
    assert (high.session, high.parent) == ("h:/plan", "h")
    assert (deep.session, deep.parent) == ("h:/plan/search", "h:/plan")
    assert {root.workflow, high.workflow, deep.workflow} == {"h"}


@pytest.mark.parametrize(
    ("headers", "fields", "session", "source"),
    [
        ({}, {"session_id": "s"}, "s", "session_id"),
        ({}, {"vllm_xargs": {"session_id": "s"}}, "s", "vllm_xargs.session_id"),
        ({"x-smg-routing-key": "k"}, {}, "k", "smg-routing-key"),
        ({}, {"rid": "run7_t3_r1"}, "run7", "rid"),
        ({}, {"rid": "run7_t3"}, "run7", "rid"),
        ({}, {"session_params": {"id": "sp", "rid": "x"}}, "sp", "session_params"),
        ({"x-conversation-id": "c"}, {}, "c", "x-conversation-id"),
        ({}, {"metadata": {"session_id": "ms"}}, "ms", "metadata"),
        ({}, {"metadata": {"thread_id": "mt"}}, "mt", "metadata"),
        ({}, {"metadata": {"conversation_id": "mc"}}, "mc", "metadata"),
        ({}, {"conversation": "conv_1"}, "conv_1", "conversation"),
        ({}, {"conversation": {"id": "conv_1"}}, "conv_1", "conversation"),
        ({"baggage": "a=b, session.id=b%20s;p=1"}, {}, "b s", "baggage"),
        ({"baggage": "gen_ai.conversation.id=g"}, {}, "g", "baggage"),
    ],
)
def test_generic_names(
    who: Identifier,
    headers: dict[str, str],
    fields: dict[str, Any],
    session: str,
    source: str,
) -> None:
    told = ask(who, {**SDK, **headers}, **fields)
    assert (told.session, told.workflow, told.source) == (session, session, source)


def test_a_bare_rid_is_a_request(who: Identifier) -> None:
    assert ask(who, rid="4f1d").source == "lineage"


# ---- state behind the API


def test_responses_continue_the_session_that_answered(who: Identifier) -> None:
    first = ask(who, body={"model": "m", "input": "hi"}, api="responses")
    who.answered("tenant", first.session, "resp_1")
    body = {"model": "m", "input": "more", "previous_response_id": "resp_1"}
    second = ask(who, body=body, api="responses")
    assert (second.session, second.workflow) == (first.session, first.workflow)
    assert (second.source, second.confidence) == ("previous_response_id", "medium")
    assert ask(who, body=body, api="responses", tenant="other").session != first.session
    who.forget("tenant", first.session)
    assert ask(who, body=body, api="responses").source == "lineage"


def test_an_equal_question_after_a_chain_of_responses_begins_another(who: Identifier) -> None:
    question = {"model": "m", "input": "hi"}
    first = ask(who, body=question, api="responses")
    assert ask(who, body=question, api="responses").session == first.session, "asked again"
    who.answered("tenant", first.session, "resp_1")
    body = {"model": "m", "input": "more", "previous_response_id": "resp_1"}
    assert ask(who, body=body, api="responses").session == first.session
    second = ask(who, body=question, api="responses")
    assert second.session != first.session
    assert (second.workflow, second.parent) == (second.session, None)
    assert ask(who, body=body, api="responses").session == first.session


def test_an_unknown_response_leads_to_the_next_family(who: Identifier) -> None:
    told = ask(who, previous_response_id="resp_unknown", prompt_cache_key="k")
    assert (told.session, told.source) == ("k", "prompt_cache_key")


def test_a_cache_key_that_covers_several_chains_is_split(who: Identifier) -> None:
    def say(*texts: str) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]

    main = ask(who, prompt_cache_key="k", messages=say("task"))
    other = ask(who, prompt_cache_key="k", messages=say("side task"))
    again = ask(who, prompt_cache_key="k", messages=say("task", "answer", "go on"))
    assert (main.session, main.workflow) == ("k", "k")
    assert (other.session, other.workflow) == ("new-1", "k")
    assert again.session == "k"
    assert ask(who, body={"model": "m", "prompt_cache_key": "bare"}).session == "bare"


# ---- nothing at all

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_frameworks_that_send_nothing_are_followed_by_content(who: Identifier) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a helpful agent."},
        {"role": "user", "content": "How many lines has README.md?"},
    ]
    seen = []
    for step in range(5):
        seen.append(ask(who, SDK, messages=messages, now_us=step))
        call = {"id": f"call_{step}", "type": "function", "function": {"name": "sh"}}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call_{step}", "content": f"{step} lines"},
        ]
    assert {told.session for told in seen} == {"new-1"}
    assert {(told.workflow, told.parent, told.kind) for told in seen} == {("new-1", None, "main")}
    assert {(told.source, told.confidence) for told in seen} == {("lineage", "low")}


def test_a_fork_belongs_to_its_parents_workflow(who: Identifier) -> None:
    def chain(*texts: str) -> list[dict[str, str]]:
        return [
            {"role": "user" if i % 2 == 0 else "assistant", "content": text}
            for i, text in enumerate(texts)
        ]

    root = ask(who, messages=chain("task"))
    ask(who, messages=chain("task", "a1", "t1"))
    ask(who, messages=chain("task", "a1", "t1", "a2", "t2"))
    fork = ask(who, messages=chain("task", "a1", "t1", "a2'", "t2'"))
    assert fork.session != root.session
    assert (fork.parent, fork.workflow, fork.kind) == (root.session, root.session, "subagent")


def test_a_trace_is_a_hint_of_the_workflow_only(who: Identifier) -> None:
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    first = ask(who, headers)
    assert (first.source, first.workflow) == ("lineage", TRACE)
    later = {"traceparent": f"00-{'1' * 32}-00f067aa0ba902b7-01"}
    assert ask(who, later).workflow == TRACE
    assert ask(who, {**headers, "baggage": "session.id=b"}).workflow == TRACE
    assert ask(who, {**headers, "x-session-id": "s"}).workflow == "s"
    zeros = {"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01", "baggage": "session.id=z"}
    assert ask(who, zeros).workflow == "z"


def test_what_holds_no_conversation_is_a_single_shot(who: Identifier) -> None:
    for body in ({}, {"model": "m"}, {"model": "m", "messages": "x"}, {"input": ["text"]}):
        first, second = ask(who, body=body), ask(who, body=body)
        assert (first.source, first.confidence) == ("none", "none")
        assert first.workflow == first.session != second.session


def test_retries_are_told(who: Identifier) -> None:
    first = ask(who, SDK)
    second = ask(who, {**SDK, "x-stainless-retry-count": "1"})
    assert (first.retry, second.retry) == (False, True)
    assert first.session == second.session
