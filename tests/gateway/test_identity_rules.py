"""The rules of identity: who comes first, what is no id, and what is remembered for whom."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from tests.gateway.asking import ask, numbered, packed

from saga.gateway.identity import Identifier, tool_durations
from saga.gateway.locations import MAX_HEADER, MAX_ID
from saga.gateway.sources import FAMILIES

UUID = "0b6a5b0e-3a3f-4c52-8a53-0d8bba2f8b41"
OPENCODE = {"user-agent": "opencode/1.18.20 ai-sdk/5", "x-session-affinity": "ses_1"}


@pytest.fixture
def who() -> Identifier:
    return Identifier(new_id=numbered())


# ---- precedence

CLIENTS: tuple[tuple[str, Mapping[str, str], Mapping[str, Any]], ...] = (
    ("saga", {"x-saga-session-id": "s-saga"}, {}),
    ("agentic_context", {}, {"vllm_xargs": {"agentic_context": {"program_id": "s-ac"}}}),
    ("agent_hint", {}, {"agent_hint": {"session_id": "s-hint"}}),
    ("dynamo", {"x-dynamo-session-id": "s-dynamo"}, {}),
    ("nvext.agent_context", {}, {"nvext": {"agent_context": {"session_id": "s-nvext"}}}),
    ("x-agent-hint", {"x-agent-hint": packed({"session_id": "s-hermes"})}, {}),
    ("claude-code", {"x-claude-code-session-id": "s-claude"}, {}),
    ("codex", {"session-id": "s-codex", "thread-id": "s-codex"}, {}),
    ("deepseek-harness", {"x-deepseek-harness-session-id": "s-dsh"}, {}),
    ("opencode", {"x-opencode-session": "s-opencode"}, {}),
    ("session_id", {}, {"session_id": "s-body"}),
    ("x-session-id", {"x-session-id": "s-header"}, {}),
    ("litellm", {"x-litellm-session-id": "s-litellm"}, {}),
    ("x-vendor-session-id", {"x-vendor-session-id": "s-vendor"}, {}),
    ("helicone", {"helicone-session-id": "s-helicone"}, {}),
    ("smg-routing-key", {"x-smg-routing-key": "s-smg"}, {}),
    ("rid", {}, {"rid": "s-rid_t1"}),
    ("session_params", {}, {"session_params": {"id": "s-params"}}),
    ("x-conversation-id", {"x-conversation-id": "s-conversation"}, {}),
    ("metadata", {}, {"metadata": {"session_id": "s-metadata"}}),
    ("conversation", {}, {"conversation": "s-conv"}),
    ("prompt_cache_key", {}, {"prompt_cache_key": "s-key"}),
    ("baggage", {"baggage": "session.id=s-baggage"}, {}),
)


@pytest.mark.parametrize("first", range(len(CLIENTS)))
def test_the_first_family_decides_and_no_other_one_adds_to_it(who: Identifier, first: int) -> None:
    headers: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for _, more_headers, more_fields in reversed(CLIENTS[first:]):
        headers |= more_headers
        fields |= more_fields
    name, own_headers, own_fields = CLIENTS[first]
    told = ask(who, headers, **fields)
    alone = ask(Identifier(new_id=numbered()), own_headers, **own_fields)
    assert (told.source, told.session) == (name, alone.session)
    assert (told.workflow, told.parent) == (alone.workflow, alone.parent)


def test_every_family_is_tested_above_in_the_order_of_the_table() -> None:
    order = list(dict.fromkeys(family.name for family in FAMILIES))
    stateful = {"previous_response_id", "vllm_xargs.session_id"}  # tests of their own
    assert [name for name in order if name not in stateful] == [name for name, _, _ in CLIENTS]


def test_tiers_and_confidence_fall_along_the_table() -> None:
    tiers = [family.tier for family in FAMILIES]
    assert tiers == sorted(tiers)
    ranks = {"exact": 0, "high": 1, "medium": 2, "low": 3}
    confidence = [ranks[family.confidence] for family in FAMILIES]
    assert confidence == sorted(confidence)


def test_claudes_agent_is_never_put_into_anothers_session(who: Identifier) -> None:
    told = ask(who, {**OPENCODE, "x-claude-code-agent-id": "a"})
    assert (told.session, told.parent) == ("ses_1", None)
    told = ask(who, {"x-claude-code-session-id": UUID, "x-parent-session-id": "p"})
    assert (told.session, told.parent) == (UUID, None)


def test_body_session_wins_over_the_header_as_in_vllm_but_not_over_opencode(
    who: Identifier,
) -> None:
    assert ask(who, {"x-session-id": "h"}, session_id="b").session == "b"
    assert ask(who, {**OPENCODE, "x-session-id": "h"}, session_id="b").session == "h"


def test_request_ids_are_never_identity(who: Identifier) -> None:
    told = ask(who, {"x-request-id": "r", "x-client-request-id": "c"})
    assert told.source == "lineage"


# ---- values


@pytest.mark.parametrize(
    "value", ["", "   ", "x" * (MAX_ID + 1), "a\nb", "a\0b", "a\x7fb", "a\x85b", "\ud800"]
)
def test_an_unfit_id_is_ignored_not_cut(who: Identifier, value: str) -> None:
    assert ask(who, {"x-saga-session-id": value}).source == "lineage"
    assert ask(who, session_id=value).source == "lineage"


@pytest.mark.parametrize("value", [12, True, None, 1.5, ["s"], {"id": "s"}])
def test_an_id_of_another_type_is_absent(who: Identifier, value: Any) -> None:
    assert ask(who, session_id=value, metadata=value, saga=value, rid=value).source == "lineage"


def test_an_id_of_full_length_counts(who: Identifier) -> None:
    assert ask(who, {"x-session-id": "x" * MAX_ID}).session == "x" * MAX_ID
    long = {"x-claude-code-session-id": "x" * MAX_ID, "x-claude-code-agent-id": "a"}
    assert len(ask(who, long).session) <= MAX_ID


def test_what_is_too_long_to_be_read_is_absent(who: Identifier) -> None:
    long = {"session_id": "s", "padding": "x" * MAX_HEADER}
    assert ask(who, {"x-saga-context": json.dumps(long)}).source == "lineage"
    assert ask(who, {"x-saga-context": packed(long)}).source == "lineage"
    assert ask(who, {"baggage": "session.id=s," + "x" * MAX_HEADER}).source == "lineage"
    assert ask(who, {"x-saga-deadline-ms": "9" * 16}).deadline_us is None
    assert ask(who, {"x-saga-deadline-ms": "-5"}).deadline_us is None


@pytest.mark.parametrize(
    ("value", "priority"),
    [
        *[("0.1", 0.1), ("10", 10.0), (" 2.50 ", 2.5), (str(1 / 3), 1 / 3), (0.1, 0.1), (3, 3.0)],
        *[(value, None) for value in ("0.09", "10.01", "0", "-1", "", "high", "nan", "inf")],
        *[(value, None) for value in ("1e0", "1_0", "+1", "0x1", "1,5", "٣", "9" * 400)],
        *[(value, None) for value in (0, 0.09, 11, -1, 10**400, True, None, [1], {"is": 1})],
    ],
)
def test_priorities_that_count(who: Identifier, value: Any, priority: float | None) -> None:
    assert ask(who, saga={"priority": value}).priority == priority
    assert ask(who, {"x-saga-context": packed({"priority": value})}).priority == priority
    if isinstance(value, str):
        assert ask(who, {"x-saga-priority": value}).priority == priority
        told = ask(who, {"x-saga-priority": value}, saga={"priority": 4})
        assert told.priority == (priority or 4.0), "of several places the first that can be read"


def test_a_session_is_not_its_own_parent(who: Identifier) -> None:
    told = ask(who, {"x-dynamo-session-id": "s", "x-dynamo-parent-session-id": "s"})
    assert (told.parent, told.workflow) == (None, "s")


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("", ()),
        ("Bash=742", (("Bash", 742_000),)),
        ("Bash=1;Bash=2", (("Bash", 1_000), ("Bash", 2_000))),
        ("Bash=-1;Read=x;=5;Grep;Edit=7", (("Edit", 7_000),)),
        ("%00=5;a%3Db=6", (("a=b", 6_000),)),
        (";".join(f"t{i}=1" for i in range(40)), tuple((f"t{i}", 1_000) for i in range(32))),
        ("Bash=1;" + "x" * 4_096, ()),
    ],
)
def test_tool_durations(text: str, tools: tuple[tuple[str, int], ...]) -> None:
    assert tool_durations(text) == tools


# ---- tenants and memory


def test_tenants_share_nothing(who: Identifier) -> None:
    child = {"x-dynamo-session-id": "c", "x-dynamo-parent-session-id": "p"}
    ask(who, {"x-saga-session-id": "p", "x-saga-workflow-id": "secret"}, tenant="a")
    assert ask(who, child, tenant="a").workflow == "secret"
    assert ask(who, child, tenant="b").workflow == "p"
    assert ask(who, tenant="a").session != ask(who, tenant="b").session


def test_forgetting_a_session_leaves_only_its_name(who: Identifier) -> None:
    ask(who, {"x-saga-session-id": "s", "x-saga-workflow-id": "w", "x-saga-parent-id": "p"})
    assert ask(who, {"x-session-id": "s"}).workflow == "w"
    who.forget("tenant", "s")
    told = ask(who, {"x-session-id": "s"})
    assert (told.workflow, told.parent) == ("s", None)
    inferred = ask(who)
    who.forget("tenant", inferred.session)
    assert ask(who).session != inferred.session


def test_a_session_moves_only_when_its_client_says_so(who: Identifier) -> None:
    ask(who, {"x-saga-session-id": "s", "x-saga-workflow-id": "w1"})
    assert ask(who, {"x-saga-session-id": "s"}).workflow == "w1"
    assert ask(who, {"x-saga-session-id": "s", "x-saga-workflow-id": "w2"}).workflow == "w2"


def test_only_so_many_sessions_are_remembered() -> None:
    who = Identifier(max_sessions=3, new_id=numbered())
    told = {"x-saga-session-id": "s", "x-saga-workflow-id": "w"}
    ask(who, told)
    for number in range(3):
        ask(who, {"x-session-id": f"other-{number}"})
    assert ask(who, {"x-session-id": "s"}).workflow == "s"
