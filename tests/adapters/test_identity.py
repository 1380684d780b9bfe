"""Whose step the code that runs is, and how that is written into headers."""

from __future__ import annotations

import contextvars

from hypothesis import given
from hypothesis import strategies as st

from saga import wire
from saga.adapters import Identity, identified
from saga.adapters.identity import MAX_VALUE, begin_step, current_step, end_step, text
from saga.gateway.locations import identifier

anything = st.text() | st.text(min_size=MAX_VALUE - 2, max_size=MAX_VALUE + 2)


@given(anything)
def test_the_gateway_takes_whatever_is_written(value: str) -> None:
    written = text(value)
    assert written.isascii()
    assert identifier(written) == (written if value else None)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=MAX_VALUE))
def test_plain_ids_stay_as_they_are(value: str) -> None:
    assert text(value) == value


@given(anything, anything)
def test_different_values_stay_apart(one: str, other: str) -> None:
    assert (text(one) == text(other)) == (one == other)


def test_broken_text_can_be_written() -> None:
    assert identifier(text("a\ud800\0")) is not None
    assert text(None) == ""
    assert text(7) == "7"


def test_headers_are_only_of_what_is_told() -> None:
    identity = Identity(workflow="w", session="s", next_tool="bash", final=True)
    assert identity.headers() == {
        wire.WORKFLOW_HEADER: "w",
        wire.SESSION_HEADER: "s",
        wire.NEXT_TOOL_HEADER: "bash",
        wire.FINAL_HEADER: "true",
    }
    assert Identity().headers() == {}


def test_the_application_is_believed_before_a_hook() -> None:
    assert current_step() is None
    _, before = begin_step(Identity(workflow="thread", session="node", agent="coder"))
    with identified(workflow="ticket-7"):
        step = current_step()
        assert step is not None
        assert step.identity == Identity(workflow="ticket-7", session="node", agent="coder")
    end_step(before)
    assert current_step() is None


def test_what_is_told_inside_is_believed_before_what_is_told_outside() -> None:
    with identified(workflow="a", agent="x"):
        with identified(workflow="b", session="s") as inner:
            assert inner == Identity(workflow="b", session="s", agent="x")
        step = current_step()
        assert step is not None
        assert step.identity == Identity(workflow="a", agent="x")
    assert current_step() is None


def test_other_contexts_are_not_concerned() -> None:
    with identified(workflow="a"):
        assert contextvars.Context().run(current_step) is None
        assert contextvars.copy_context().run(current_step) is not None
