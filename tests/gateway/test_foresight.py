"""What is foreseen of sessions: learned apart for each tenant, within bounds, and told."""

from __future__ import annotations

import msgspec
import pytest
from tests.gateway.live import ask, chat, gateway

from saga.core.forecast import Progress
from saga.gateway.foresight import LEARNED_PER_S, Foresight
from saga.gateway.sessions import LiveSession, LiveWorkflow

SECOND = 1_000_000


def session(name: str = "red/s", kind: str = "red/coder") -> LiveSession:
    return LiveSession(name, LiveWorkflow(name, name.partition("/")[0], kind, "saga", 0))


def step(foresight: Foresight, of: LiveSession, at_s: float, tool: str | None = "bash") -> None:
    """One that took a second and ended then."""
    at = int(at_s * SECOND)
    foresight.answered(
        of, tool, arrived=at - SECOND, ended=at, prompt_tokens=1_000, output_tokens=50
    )


def test_return_times_tools_and_ends_are_learned() -> None:
    foresight = Foresight()
    for number in range(40):
        one = session(f"red/{number}")
        for place, tool in enumerate(("search", "edit", "edit")):
            step(foresight, one, 1_000 * number + 6 * place, tool)
        foresight.closed(one.id)
    last = session("red/last")
    step(foresight, last, 100_000, "search")
    told = foresight.of("red/last", 100_000 * SECOND)
    assert told is not None
    assert max(told["next"], key=told["next"].get) == "edit"
    assert told["back_in_s"]["p50"] == pytest.approx(5, rel=0.3)
    assert told["steps_left"]["p50"] == 2
    assert told["reliability"] > 0.7
    later = foresight.of("red/last", 100_004 * SECOND)
    assert later is not None
    assert later["back_in_s"]["p50"] < told["back_in_s"]["p50"]
    assert msgspec.json.encode(told)


def test_nothing_is_foreseen_of_who_never_ran_or_is_over() -> None:
    foresight, one = Foresight(), session()
    assert foresight.of("red/s", 0) is None
    step(foresight, one, 1)
    assert foresight.of("red/s", 2 * SECOND) is not None
    foresight.closed("red/s")
    foresight.closed("red/s")
    assert foresight.of("red/s", 2 * SECOND) is None
    one.ends = True
    step(foresight, one, 9)
    assert foresight.of("red/s", 9 * SECOND) is None, "it was its only step"


def test_a_session_that_says_which_step_is_its_last_is_learned_to_its_end() -> None:
    foresight = Foresight()
    for number in range(30):
        one = session(f"red/{number}")
        for place in range(4):
            one.ends = place == 3
            step(foresight, one, 1_000 * number + 6 * place)
        foresight.closed(one.id)
    last = session("red/last")
    for place in range(3):
        step(foresight, last, 100_000 + 6 * place)
    told = foresight.of("red/last", 100_012 * SECOND)
    assert told is not None
    assert told["steps_left"]["p50"] == 1


def test_an_output_that_does_not_come_back_is_no_cut() -> None:
    """Templates leave out what models thought."""
    foresight = Foresight()
    for number in range(30):
        one = session(f"red/{number}")
        for place in range(5):
            at, prompt = (1_000 * number + 6 * place) * SECOND, 10_000 + 150 * place
            foresight.answered(
                one, "t", arrived=at, ended=at + 1, prompt_tokens=prompt, output_tokens=500
            )
    told = foresight.of("red/29", 40_000 * SECOND)
    assert told is not None
    assert told["p_reuse"] > 0.8


def test_requests_that_overlap_are_no_return() -> None:
    foresight, one = Foresight(), session()
    for at in (1.0, 1.5, 1.9):
        step(foresight, one, at)
    model = foresight.forecasts.of("red/coder")
    assert len(model.labels) > 0
    told = foresight.of("red/s", 2 * SECOND)
    assert told is not None
    assert told["reliability"] == 0, "no return time was seen"


def test_a_busy_gateway_learns_from_some() -> None:
    foresight = Foresight()
    for number in range(3 * LEARNED_PER_S):
        step(foresight, session(f"red/{number}"), 7.5)
    assert foresight.num_left_out == 2 * LEARNED_PER_S
    step(foresight, session("red/next"), 8.5)
    assert foresight.of("red/next", 9 * SECOND) is not None
    half = session(f"red/{3 * LEARNED_PER_S - 1}")
    step(foresight, half, 9.5)
    assert foresight.of(half.id, 10 * SECOND) is None, "what follows a gap is no chain"
    foresight.closed(half.id)
    totals = foresight.forecasts.of("red/coder").steps_left(Progress())
    assert len(totals.totals) == 0, "nor the length of a session"


def test_a_loud_tenant_leaves_the_others_their_part() -> None:
    foresight = Foresight()
    for second in (1.5, 2.5):
        for number in range(LEARNED_PER_S):
            step(foresight, session(f"red/{second} {number}"), second)
        step(foresight, session(f"blue/{second}", "blue/coder"), second)
    assert foresight.of("blue/2.5", 3 * SECOND) is not None
    assert foresight.num_left_out == LEARNED_PER_S // 2


def test_a_gateway_tells_what_it_foresees() -> None:
    with gateway() as live:
        url, headers = live.url, {"x-saga-workflow-id": "w", "x-saga-session-id": "s"}
        for text in ("x", "x y", "x y z"):
            assert ask(f"{url}/v1/chat/completions", chat(text), headers=headers)[0] == 200
        [one] = ask(f"{url}/v1/saga/workflows/w")[1]["sessions"]
        assert one["forecast"]["back_in_s"]["p95"] > one["forecast"]["back_in_s"]["p50"]
        assert one["forecast"]["reliability"] > 0
