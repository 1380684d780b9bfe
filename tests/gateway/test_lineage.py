"""Sessions told apart by what they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from tests.gateway.asking import numbered

from saga.gateway.lineage import MAX_MESSAGES, REPEAT_US, Followed, Lineages, canonical

Message = dict[str, Any]


class Asker:
    """Asks one ``Lineages`` as one client would; what is not said is as it was before."""

    def __init__(self, max_sessions: int = 1_000) -> None:
        self.lineages = Lineages(max_sessions, numbered())

    def __call__(
        self,
        messages: Sequence[Message | str],
        *,
        tenant: str = "t",
        partition: Sequence[str] = ("chat", "m", "agent"),
        system: str = "",
        now_us: int = 0,
        retry: bool = False,
        name: str | None = None,
    ) -> Followed:
        followed = self.lineages.follow(
            tenant,
            partition,
            [Raw(json.dumps(system).encode())],
            [Raw(json.dumps(message).encode()) for message in messages],
            now_us=now_us,
            retry=retry,
            name=name,
        )
        assert followed is not None
        return followed


@pytest.fixture
def ask() -> Asker:
    return Asker()


def user(text: Any) -> Message:
    return {"role": "user", "content": text}


def answer(text: Any) -> Message:
    return {"role": "assistant", "content": text}


def result(text: str) -> Message:
    return {"role": "tool", "tool_call_id": "c", "content": text}


SYSTEM: Message = {"role": "system", "content": "You are an agent."}
TURNS: list[Message] = [user("task"), answer("a1"), result("r1"), answer("a2"), result("r2")]


def test_a_growing_conversation_is_one_session(ask: Asker) -> None:
    assert {ask([SYSTEM, *TURNS[:n]]) for n in (1, 3, 5)} == {Followed("new-1")}


RESULTS = {
    "chat": lambda call: {"role": "tool", "tool_call_id": call, "content": "r"},
    "messages": lambda call: user([{"type": "tool_result", "tool_use_id": call, "content": "r"}]),
    "responses": lambda call: {"type": "function_call_output", "call_id": call, "output": "r"},
}


@pytest.mark.parametrize("api", RESULTS)
def test_the_result_of_a_call_goes_on_with_the_session_that_made_it(ask: Asker, api: str) -> None:
    first = ask([user("task")], system="You triage.").session
    ask.lineages.called("t", first, "call-1")
    handed_over = [user("task"), answer("to the expert"), RESULTS[api]("call-1")]
    assert ask(handed_over, system="You are the expert.") == Followed(first)
    grown = [*handed_over, answer("a"), user("more")]
    assert ask(grown, system="You are the expert.") == Followed(first)


def test_a_history_that_was_rewritten_is_known_by_the_call_in_it(ask: Asker) -> None:
    for messages in (TURNS[:1], TURNS[:3]):
        first = ask(messages).session
    ask.lineages.called("t", first, "call-2")
    assert ask([user("summary"), answer("a2"), RESULTS["chat"]("call-2")]) == Followed(first)


def test_a_result_among_others_of_the_same_step_is_found(ask: Asker) -> None:
    first = ask([user("task")]).session
    ask.lineages.called("t", first, "call-1")
    results = [RESULTS["chat"](f"call-{number}") for number in (1, 2, 3)]
    assert ask([user("moved"), *results]).session == first


def test_a_call_of_a_step_before_the_last_tells_nothing(ask: Asker) -> None:
    """Who repeats it is another conversation that began alike."""
    first = ask([user("task")]).session
    ask.lineages.called("t", first, "call-1")
    ask.lineages.called("t", first, "call-2")
    ask([user("task"), answer("a"), RESULTS["chat"]("call-1")])
    late = ask([user("task"), answer("b"), RESULTS["chat"]("call-2")])
    assert late.session != first


def test_ids_that_engines_give_twice_tell_nothing(ask: Asker) -> None:
    """Some count a session's calls: every session has a call 0."""
    sessions = [ask([user(text)]).session for text in ("one", "two")]
    for session in (*sessions, *sessions):
        ask.lineages.called("t", session, "functions.look:0")
    told = ask([user("three"), answer("a"), RESULTS["chat"]("functions.look:0")])
    assert told.session not in sessions


def test_a_call_is_known_to_its_own_tenant_only(ask: Asker) -> None:
    first = ask([user("task")]).session
    ask.lineages.called("t", first, "call-1")
    other = ask([user("x"), answer("a"), RESULTS["chat"]("call-1")], tenant="u")
    assert other.session != first


def test_the_same_step_again_is_the_same_session(ask: Asker) -> None:
    for n in (1, 1, 3, 3, 5, 5):
        assert ask(TURNS[:n]).session == "new-1"


def test_a_late_retry_of_an_earlier_step_is_the_same_session_if_the_client_says_so(
    ask: Asker,
) -> None:
    for n in (1, 3, 5):
        ask(TURNS[:n])
    assert ask(TURNS[:3], retry=True).session == "new-1"
    assert ask([*TURNS, answer("a3"), result("r3")]).session == "new-1"


def test_a_repeated_opening_is_a_retry_for_a_while(ask: Asker) -> None:
    assert ask(TURNS[:1], now_us=0).session == "new-1"
    assert ask(TURNS[:1], now_us=REPEAT_US).session == "new-1"
    assert ask(TURNS[:1], now_us=2 * REPEAT_US).session == "new-1"
    assert ask(TURNS[:1], now_us=3 * REPEAT_US + 1) == Followed("new-2")
    assert ask(TURNS[:3], now_us=3 * REPEAT_US + 2).session == "new-2"


def test_an_opening_is_no_retry_once_its_session_went_on_without_repeating_it(ask: Asker) -> None:
    assert ask(TURNS[:1]).session == "new-1"
    ask.lineages.go_on("t", "new-1")
    assert ask(TURNS[:1], retry=True).session == "new-1"
    assert ask(TURNS[:1]) == Followed("new-2")
    assert ask(TURNS[:1]) == Followed("new-2"), "this one has not gone on yet"
    ask.lineages.go_on("t", "new-3")  # nobody's
    ask.lineages.go_on("u", "new-2")
    assert ask(TURNS[:3]) == Followed("new-2")


def test_a_step_may_be_repeated_at_any_time_once_the_model_has_answered(ask: Asker) -> None:
    ask(TURNS[:1])
    ask(TURNS[:3])
    assert ask(TURNS[:3], now_us=100 * REPEAT_US).session == "new-1"


def test_a_system_prompt_in_common_is_nothing_in_common(ask: Asker) -> None:
    assert ask([SYSTEM, user("one")]).session == "new-1"
    assert ask([SYSTEM, user("two")]) == Followed("new-2")
    assert ask([SYSTEM, {"role": "developer", "content": "x"}, user("one")]) == Followed("new-3")


def test_equal_questions_to_agents_with_other_prompts_are_other_sessions(ask: Asker) -> None:
    first = ask(TURNS[:1], system="You are a critic.")
    second = ask(TURNS[:1], system="You are an author.")
    assert first.session != second.session
    assert second.parent is None


def test_messages_of_the_system_alone_tell_nothing(ask: Asker) -> None:
    for messages in ([], [Raw(json.dumps(SYSTEM).encode())]):
        assert ask.lineages.follow("t", (), [], messages, now_us=0) is None


def test_a_fixed_first_message_makes_nobody_related(ask: Asker) -> None:
    """Clients that inject one collide forever where sessions are told by the first message."""
    fixed = user("<context>always the same</context>")
    sessions = []
    for task in ("one", "two", "three"):
        first = ask([fixed, user(task)])
        assert first.parent is None
        second = ask([fixed, user(task), answer(f"on {task}"), result("r")])
        assert second == first
        sessions.append(first.session)
    assert len(set(sessions)) == 3


def test_fixed_first_exchanges_make_nobody_related_either(ask: Asker) -> None:
    shots = [user("example"), answer("like this")]
    first, second = ask([*shots, user("one")]), ask([*shots, user("two")])
    assert first.session != second.session
    assert second.parent is None


def test_equal_openings_are_split_by_the_first_answer(ask: Asker) -> None:
    opening = [user("same task")]
    assert ask(opening) == ask(opening)
    chains = [[*opening, answer(f"answer {i}"), result("r")] for i in range(3)]
    split = [ask(chain) for chain in chains]
    assert len({followed.session for followed in split}) == 3
    assert {followed.parent for followed in split} == {None}
    longer = [[*chain, answer("b"), result("q")] for chain in chains]
    assert [ask(chain) for chain in longer] == split


def test_a_fork_names_the_session_it_left(ask: Asker) -> None:
    for n in (1, 3, 5):
        ask(TURNS[:n])
    fork = ask([*TURNS[:3], answer("other"), result("other")])
    assert fork == Followed("new-2", "new-1")
    again = ask([*TURNS[:3], answer("third"), result("third")])
    assert again.parent is not None
    other = [*TURNS[:3], answer("other"), result("other")]
    for chain, session in ((TURNS, "new-1"), (other, "new-2")):
        assert ask([*chain, answer("x"), result("y")]).session == session


def test_asking_an_earlier_step_anew_is_a_fork(ask: Asker) -> None:
    for n in (1, 3, 5):
        ask(TURNS[:n])
    fork = ask(TURNS[:3])
    assert fork == Followed("new-2", "new-1")
    assert ask([*TURNS[:3], answer("b2"), result("s2")]) == Followed("new-2")
    sibling = ask([*TURNS[:3], answer("c2"), result("s2")])
    assert sibling.parent == "new-2"
    assert ask([*TURNS, answer("a3"), result("r3")]) == Followed("new-1")


def test_a_user_who_interrupts_stays_in_the_session(ask: Asker) -> None:
    ask(TURNS[:1])
    ask(TURNS[:3])
    assert ask([*TURNS[:3], user("stop, do this")]).session == "new-1"


def test_more_questions_before_any_answer_are_another_conversation(ask: Asker) -> None:
    ask([user("task")])
    assert ask([user("task"), user("more")]) == Followed("new-2")


def test_a_client_that_edits_its_last_message_stays_in_the_session(ask: Asker) -> None:
    """As those do that append a reminder to it and take it out of the earlier ones."""
    chain: list[Message] = [user("context"), user("task")]
    for step in range(4):
        reminded = [*chain[:-1], {**chain[-1], "content": chain[-1]["content"] + " (remember!)"}]
        assert ask(reminded).session == "new-1"
        chain += [answer(f"a{step}"), user(f"go on {step}")]


def test_another_last_message_is_no_edit_unless_an_answer_follows(ask: Asker) -> None:
    ask([user("context"), user("task")])
    assert ask([user("context"), user("other"), user("more")]) == Followed("new-2")


@pytest.mark.parametrize("text_first", [True, False])
def test_cache_markers_may_move(ask: Asker, text_first: bool) -> None:
    """Clients of the Messages API mark the last message and take older marks away."""
    chain: list[Message] = [user("task")]
    for step in range(4):
        marked = {
            **chain[-1],
            "content": [
                {
                    "type": "text",
                    "text": chain[-1]["content"],
                    "cache_control": {"type": "ephemeral", "ttl": "1h"},
                }
            ],
        }
        before = [
            message
            if text_first
            else {**message, "content": [{"type": "text", "text": message["content"]}]}
            for message in chain[:-1]
        ]
        assert ask([*before, marked], system="s").session == "new-1"
        chain += [answer(f"a{step}"), user(f'go on {step}, "quoted" \\ {{}} []')]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"cache_control":{"type":"ephemeral"}}', '{"a":1}'),
        ('{"a":1, "cache_control": null}', '{"a":1}'),
        ('{"cache_control":{"type":"x"},"a":1}', '{"a":1}'),
        ('{"content":[{"type":"text","text":"x\\"]}"}]}', '{"content":"x\\"]}"}'),
    ],
)
def test_canonical_takes_markers_out(one: str, other: str) -> None:
    assert canonical(Raw(one.encode())) == canonical(Raw(other.encode()))


@pytest.mark.parametrize(
    "text",
    [
        r'{"content":"a \"cache_control\":{\"type\":\"x\"} b"}',
        '{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}',
        '{"role":"user","content":[{"type":"image","text":"a"}]}',
        '{"role":"user","content":[]}',
    ],
)
def test_canonical_leaves_content_alone(text: str) -> None:
    assert canonical(Raw(text.encode())) == text.encode()


def test_items_of_the_responses_api(ask: Asker) -> None:
    items: list[Message] = [{"type": "message", "role": "user", "content": "task"}]
    assert ask(items).session == "new-1"
    for step in range(3):
        items += [
            {"type": "reasoning", "id": f"rs_{step}", "summary": []},
            {"type": "function_call", "call_id": f"c{step}", "name": "sh", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{step}", "output": "ok"},
        ]
        assert ask(items) == Followed("new-1")


def test_a_text_is_a_conversation_of_one_item(ask: Asker) -> None:
    assert ask(["once upon"]) == ask(["once upon"])
    assert ask(["once upon a time"]) == Followed("new-2")


def test_partitions_and_tenants_are_strangers(ask: Asker) -> None:
    first = ask(TURNS)
    for other in (
        ask(TURNS, tenant="u"),
        ask(TURNS, partition=("chat", "m", "other")),
        ask(TURNS, partition=("messages", "m", "agent")),
        ask(TURNS, partition=("chat", "n", "agent")),
    ):
        assert other.session != first.session
        assert other.parent is None


def test_the_boundary_between_prompt_and_messages_counts() -> None:
    lineages = Lineages(10, numbered())
    one, two = Raw(b'"a"'), Raw(b'"b"')
    first = lineages.follow("t", (), [one], [two], now_us=0)
    assert lineages.follow("t", (), [], [one, two], now_us=0, retry=True) != first


def test_a_name_goes_to_the_first_session_of_its_kind(ask: Asker) -> None:
    assert ask([user("one")], name="key").session == "key"
    assert ask([user("two")], name="key").session == "new-1"
    assert ask([user("one"), answer("a"), result("r")], name="key").session == "key"


def test_a_forgotten_session_is_not_found_again(ask: Asker) -> None:
    ask(TURNS[:3])
    ask.lineages.forget("t", "new-1")
    assert ask(TURNS) == Followed("new-2")


def test_what_is_not_asked_for_is_forgotten_and_the_rest_is_not() -> None:
    ask = Asker(max_sessions=4)
    ask([user("old")])
    for number in range(3):
        ask([user(f"new {number}")])
    assert ask([user("old")]).session == "new-1"
    ask([user("one more")])
    assert ask([user("new 0")]).session == "new-6"
    assert ask([user("old"), answer("a"), result("r")]).session == "new-1"


def test_a_chain_without_end_is_not_followed() -> None:
    lineages = Lineages(10, numbered())
    endless = [Raw(b"1")] * (MAX_MESSAGES + 1)
    assert lineages.follow("t", (), [], endless, now_us=0) is None
    assert lineages.follow("t", (), [], endless[1:], now_us=0) is not None


# ---- laws

schedules = st.lists(st.integers(0, 4), min_size=1, max_size=40)
"""Which of five conversations takes its next turn."""


def conversation(who: int, turns: int, *opening: str) -> list[Message]:
    chain: list[Message] = [SYSTEM, *map(user, opening)]
    for turn in range(turns):
        chain += [answer(f"answer {who} {turn}"), result(f"result {turn % 2}")]
    return chain


@given(schedules)
def test_conversations_are_sessions_however_they_interleave(schedule: list[int]) -> None:
    ask = Asker()
    turns = [0] * 5
    sessions: dict[int, set[Followed]] = {}
    for who in schedule:
        followed = ask(conversation(who, turns[who], "fixed first message", f"task {who}"))
        sessions.setdefault(who, set()).add(followed)
        turns[who] += 1
    assert all(len(found) == 1 for found in sessions.values())
    assert len(set.union(*sessions.values())) == len(sessions)
    assert all(f.parent is None for found in sessions.values() for f in found)


@given(schedules)
def test_conversations_with_equal_openings_are_told_apart_within_one_turn(
    schedule: list[int],
) -> None:
    ask = Asker()
    turns = [0] * 5
    sessions: dict[int, set[str]] = {}
    for who in schedule:
        followed = ask(conversation(who, turns[who], "the same task"))
        assert followed.parent is None
        if turns[who]:
            sessions.setdefault(who, set()).add(followed.session)
        turns[who] += 1
    assert all(len(found) == 1 for found in sessions.values())
    assert len(set().union(*sessions.values())) == len(sessions)


@given(schedules, st.integers(1, 3))
def test_with_too_little_memory_sessions_may_be_lost_but_never_mixed(
    schedule: list[int], max_sessions: int
) -> None:
    ask = Asker(max_sessions)
    turns = [0] * 5
    owner: dict[str, int] = {}
    for who in schedule:
        session = ask(conversation(who, turns[who], f"task {who}")).session
        assert owner.setdefault(session, who) == who
        turns[who] += 1
