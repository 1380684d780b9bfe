"""Algorithm 1 and Eq. 6: ttl = min(P95 (1 - 0.5 m), 300 s), m memory pressure from 0.7 to 0.9."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.factory import SECOND, Cluster, engine, seen, session, workflow

from saga.core.graph import GraphStore
from saga.core.policy import Hold
from saga.core.return_times import ReturnTimes
from saga.policies.tool_ttl import ToolTtl

NOW = 50 * SECOND
TWENTY = tuple(range(SECOND, 21 * SECOND, SECOND))
"""1 to 20 s: the nearest rank of 95 % is the 19th, 19 s."""


def hold(
    policy: ToolTtl,
    *,
    used: int = 0,
    tool: str | None = "shell",
    times: ReturnTimes | None = None,
    mean_steps: float | None = 10.0,
) -> Hold | None:
    """``used`` of the engine's 10,000 tokens are resident, 900 of them the session's."""
    home = engine(resident_tokens=used)
    held = session(
        of=workflow(mean_steps=mean_steps), home=home, resident_tokens=900, tool=tool, num_steps=1
    )
    cluster = Cluster(
        engines=[home], now=NOW, return_times=seen("shell", *TWENTY) if times is None else times
    )
    return policy.hold(held, cluster)


def ttl_s(policy: ToolTtl, **situation: Any) -> float:
    answer = hold(policy, **situation)
    assert answer is not None
    return (answer.until - NOW) / SECOND


@pytest.mark.parametrize(
    ("used", "expected_s"),
    [
        (0, 19.0),
        (7_000, 19.0),  # m = 0
        (7_500, 19.0 * 0.875),  # m = 0.25
        (8_000, 19.0 * 0.75),  # m = 0.5
        (9_000, 19.0 * 0.5),  # m = 1
        (10_000, 19.0 * 0.5),  # m stays at 1
    ],
)
def test_pressure_halves_the_ttl(used: int, expected_s: float) -> None:
    assert ttl_s(ToolTtl(), used=used) == pytest.approx(expected_s, abs=2e-6)


def test_percentile_is_a_parameter() -> None:
    assert ttl_s(ToolTtl(percentile=0.5)) == 10.0
    assert ttl_s(ToolTtl(percentile=1.0)) == 20.0


@pytest.mark.parametrize(
    ("usual_s", "used", "expected_s"),
    [(299, 0, 299.0), (400, 0, 300.0), (400, 9_000, 200.0), (1_000, 9_000, 300.0)],
)
def test_never_beyond_300_seconds(usual_s: int, used: int, expected_s: float) -> None:
    times = seen("shell", usual_s * SECOND)
    assert ttl_s(ToolTtl(), used=used, times=times) == pytest.approx(expected_s, abs=2e-6)


def test_a_tool_never_seen_gets_the_longest() -> None:
    assert ttl_s(ToolTtl(), tool="browser") == 300.0
    assert ttl_s(ToolTtl(max_ttl_s=120.0), tool="browser", used=9_500) == 120.0


def test_a_floor_for_tools_of_milliseconds() -> None:
    times = seen("shell", 6_000)
    assert ttl_s(ToolTtl(), times=times) == pytest.approx(0.006)
    assert ttl_s(ToolTtl(floor_s=1.0), times=times) == 1.0
    assert ttl_s(ToolTtl(floor_s=1.0)) == 19.0


def test_nothing_is_held_while_the_graph_is_unknown() -> None:
    assert hold(ToolTtl(), mean_steps=None) is None
    assert hold(ToolTtl(hold_terminal=True), tool=None, mean_steps=None) is None


def test_a_graph_learned_from_sessions_serves_as_well() -> None:
    graphs = GraphStore()
    graph = graphs.learn("agent")
    for _ in range(30):  # two steps of three are followed by another one with 100 new tokens
        graph.observe_step("shell", "shell", new_tokens=100)
        graph.observe_step("shell", "shell", new_tokens=100)
        graph.observe_end("shell", 3)
    home = engine(resident_tokens=900)
    held = session(home=home, resident_tokens=900, tool="shell", num_steps=1)
    cluster = Cluster(engines=[home], now=NOW, graphs=graphs, return_times=seen("shell", SECOND))
    answer = ToolTtl().hold(held, cluster)
    assert answer is not None
    assert answer.until == NOW + SECOND
    assert answer.score == pytest.approx(2 / 3 * 900 / (900 + 100))


def test_the_score_of_a_declared_graph_is_the_chance_of_another_step() -> None:
    answer = hold(ToolTtl(), mean_steps=10.0)
    assert answer is not None
    assert answer.score == pytest.approx(0.9)  # no observation was seen: the overlap is whole


def test_a_step_without_a_tool_is_scored_only_unless_told() -> None:
    answer = hold(ToolTtl(), tool=None)
    assert answer is not None
    assert answer.until == NOW
    assert ttl_s(ToolTtl(hold_terminal=True), tool=None) == 300.0


def test_a_session_without_a_home_holds_nothing() -> None:
    homeless = session(of=workflow(mean_steps=10.0), tool="shell")
    assert ToolTtl().hold(homeless, Cluster(engines=[engine()], now=NOW)) is None


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 10**10))
def test_law_more_pressure_never_holds_longer(less: int, more: int, usual_us: int) -> None:
    less, more = sorted((less, more))
    times = seen("shell", usual_us)
    calm = ttl_s(ToolTtl(), used=less, times=times)
    tight = ttl_s(ToolTtl(), used=more, times=times)
    assert 0.5 * calm - 2e-6 <= tight <= calm <= 300.0
