"""Prompts and answers as tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saga.engine.tokens import (
    LONGEST,
    SHORTEST,
    TOKEN_BYTES,
    Turn,
    Wish,
    from_token_ids,
    plan_answer,
    raw_prompt,
    render,
    text_part,
    token_ids,
)

USER = Turn("user", (text_part("What is the time?"),))
PROMPT = render([Turn("system", (b"be brief",)), USER])
WISHES = st.builds(
    Wish,
    max_tokens=st.none() | st.integers(1, 400),
    min_tokens=st.integers(0, 400),
    ignore_eos=st.booleans(),
    output_tokens=st.none() | st.integers(1, 400),
    tool=st.sampled_from([None, "ls", "a_tool_with_a_long_name"]),
)


def test_a_turn_is_its_role_its_parts_in_whole_tokens_and_an_end() -> None:
    """system, 2 tokens of text, end; user, 5 tokens of text (17 bytes), end; assistant."""
    assert PROMPT.num_tokens == 4 + 7 + 1
    assert PROMPT.shared_tokens == 4


@given(st.text(), WISHES)
def test_the_next_prompt_begins_with_this_one_and_its_answer(text: str, wish: Wish) -> None:
    prompt = render([Turn("system", (b"be brief",)), Turn("user", (text_part(text),))])
    answer = plan_answer(prompt, wish, room=1_000)
    turns = [Turn("system", (b"be brief",)), Turn("user", (text_part(text),)), answer.turn, USER]
    assert render(turns).text.startswith(prompt.text + answer.tokens)


@given(st.binary(max_size=80), WISHES)
def test_so_does_a_raw_prompt_that_repeats_them(text: bytes, wish: Wish) -> None:
    text = text.ljust(TOKEN_BYTES, b".")
    prompt = raw_prompt(text)
    answer = plan_answer(prompt, Wish(output_tokens=wish.output_tokens), room=1_000)
    again = raw_prompt(text + answer.text.encode() + b" go on")
    assert again.text.startswith(prompt.text + answer.tokens)


@given(st.text(), WISHES, st.integers(1, 500))
def test_an_answer_has_the_length_it_says(text: str, wish: Wish, room: int) -> None:
    answer = plan_answer(render([Turn("user", (text_part(text),))]), wish, room)
    assert 1 <= answer.num_tokens <= min(room, wish.max_tokens or room)
    assert len(answer.tokens) == answer.num_tokens * TOKEN_BYTES
    assert answer.upto(answer.num_tokens) == answer.text
    assert answer.upto(0) == ""
    assert (answer.finish == "tool") == (answer.tool is not None)


@given(st.text(), st.integers(1, 300))
def test_each_token_of_a_text_brings_four_bytes(text: str, length: int) -> None:
    answer = plan_answer(render([Turn("user", (text_part(text),))]), Wish(), 1_000)
    assert len(answer.upto(length)) == min(TOKEN_BYTES * length, len(answer.text))


def test_lengths() -> None:
    natural = plan_answer(PROMPT, Wish(), 10_000)
    assert SHORTEST <= natural.num_tokens <= LONGEST
    assert natural.finish == "stop"
    assert plan_answer(PROMPT, Wish(max_tokens=7), 10_000).num_tokens == 7
    assert plan_answer(PROMPT, Wish(max_tokens=7), 10_000).finish == "length"
    assert plan_answer(PROMPT, Wish(max_tokens=900, ignore_eos=True), 10_000).num_tokens == 900
    assert plan_answer(PROMPT, Wish(min_tokens=800), 10_000).num_tokens == 800
    forced = plan_answer(PROMPT, Wish(output_tokens=33), 10_000)
    assert (forced.num_tokens, forced.finish) == (33, "stop")
    calling = plan_answer(PROMPT, Wish(output_tokens=33, tool="ls"), 10_000)
    assert (calling.num_tokens, calling.finish, calling.tool) == (33, "tool", "ls")


def test_a_call_that_does_not_fit_is_left_out() -> None:
    answer = plan_answer(PROMPT, Wish(max_tokens=2, tool="a_tool_with_a_long_name"), 100)
    assert (answer.tool, answer.num_tokens, answer.finish) == (None, 2, "length")


def test_answers_depend_on_the_prompt_and_on_nothing_else() -> None:
    other = render([Turn("user", (b"What is the date?",))])
    assert plan_answer(PROMPT, Wish(), 500) == plan_answer(PROMPT, Wish(), 500)
    assert plan_answer(PROMPT, Wish(), 500).text != plan_answer(other, Wish(), 500).text


@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1))
def test_token_ids_are_the_prompt(ids: list[int]) -> None:
    assert token_ids(raw_prompt(from_token_ids(ids))) == ids


def test_an_empty_prompt_is_one_token() -> None:
    assert raw_prompt(b"").num_tokens == 1
    assert raw_prompt(b"a").num_tokens == 1
