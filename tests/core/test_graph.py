"""Agent execution graphs: Eq. 4 and 5 by hand, the cold start, declared chains, bounds."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.core.graph import END, START, AgentExecutionGraph, GraphStore, Mean, RemainingWork
from saga.core.model import Session, Tenant, Workflow


def learned(
    *walks: tuple[str | None, ...], times: int = 30, new_tokens: int = 0
) -> AgentExecutionGraph:
    """A graph that has seen each walk (the tools of a session's steps) ``times`` times."""
    graph = AgentExecutionGraph()
    for walk in walks * times:
        watch(graph, walk, new_tokens)
    return graph


def watch(graph: AgentExecutionGraph, walk: tuple[str | None, ...], new_tokens: int = 0) -> None:
    for before, after in pairwise(walk):
        graph.observe_step(before, after, new_tokens=new_tokens)
    graph.observe_end(walk[-1], len(walk))


def test_mean_has_a_default_until_the_first_value() -> None:
    mean = Mean()
    assert mean.value(7.0) == 7.0
    mean.add(0.0)
    mean.add(3.0)
    assert mean.value(7.0) == 1.5


def test_nothing_is_known_before_thirty_sessions() -> None:
    graph = learned(("shell", None), times=29)
    assert graph.p_continue("shell") is None
    assert graph.p_reuse("shell", 1_000) is None
    assert graph.next_label("shell") is None
    watch(graph, ("shell", None))
    assert graph.p_continue("shell") == 1.0
    assert graph.p_continue(None) == 0.0
    assert graph.next_label("shell") == "none"


def test_declared_steps_hold_until_enough_was_seen() -> None:
    """The linear ReAct chain: another step follows with 1 - 1 / mean_steps."""
    graph = learned(("shell", None), times=29)
    assert graph.p_continue("shell", 10) == 0.9
    assert graph.p_continue("shell", 1) == 0.0
    assert graph.p_continue("shell", 0.5) == 0.0
    assert graph.p_reuse("never seen", 1_000, 10) == 0.9
    watch(graph, ("shell", None))
    assert graph.p_continue("shell", 10) == 1.0


def test_transition_probabilities_by_hand() -> None:
    graph = learned(("a", "b"), ("a", "b"), ("a", "c"), ("a",), times=10)
    assert graph.p_continue("a") == pytest.approx(0.75)
    assert graph.p_continue("b") == graph.p_continue("c") == 0.0
    assert graph.next_label("a", min_probability=0.5) == "b"
    assert graph.next_label("a") is None, "0.5 is not sure enough"


def test_an_unseen_step_is_taken_for_a_usual_one() -> None:
    graph = learned(("a", "a", "a", "a"))
    assert graph.p_continue("never seen") == pytest.approx(1 - 1 / 4)
    assert graph.p_continue(START) == pytest.approx(1 - 1 / 4)


def test_a_session_before_its_first_step_is_no_rare_tool() -> None:
    graph = AgentExecutionGraph(max_nodes=1)
    for _ in range(30):
        watch(graph, ("a", "rare"))
    assert graph.p_continue("seldom") == 0.0, "like the other rare ones"
    assert graph.p_continue(START) == pytest.approx(1 / 2)


def test_reuse_by_hand() -> None:
    """Eq. 4: sum of P times overlap; Eq. 5: cached / (cached + E[obs_tokens])."""
    graph = learned(("a", "b"), ("a",), times=20, new_tokens=500)
    assert graph.p_reuse("a", 1_500) == pytest.approx(0.5 * 1_500 / 2_000)
    graph.observe_step("c", "a", new_tokens=9_000)
    assert graph.p_reuse("a", 1_500) == pytest.approx(0.5 * 1_500 / 2_000), "c is not a"
    assert graph.p_reuse("b", 1_500) == 0.0, "terminal"
    assert graph.p_reuse("a", 0) == 0.0


def test_reuse_with_declared_steps_uses_the_tokens_seen_so_far() -> None:
    graph = AgentExecutionGraph()
    assert graph.p_reuse("a", 1_000, 5) == 0.8, "nothing seen: full overlap"
    assert graph.p_reuse("a", 0, 5) == 0.0
    graph.observe_step("a", "a", new_tokens=250)
    assert graph.p_reuse("a", 1_000, 5) == pytest.approx(0.8 * 1_000 / 1_250)
    assert graph.p_reuse("b", 1_000, 5) == pytest.approx(0.8 * 1_000 / 1_250), "of any step"


@given(st.integers(0, 10**6), st.integers(0, 10**4), st.floats(0.5, 200))
def test_reuse_is_a_probability(cached: int, new_tokens: int, steps: float) -> None:
    graph = AgentExecutionGraph()
    graph.observe_step("a", "a", new_tokens=new_tokens)
    p, p_continue = graph.p_reuse("a", cached, steps), graph.p_continue("a", steps)
    assert p is not None and p_continue is not None
    assert 0.0 <= p <= p_continue + 1e-12 <= 1.0 + 1e-12


@given(st.floats(1.0, 30.0))
def test_remaining_steps_are_those_of_the_geometric_walk(mean_steps: float) -> None:
    graph = AgentExecutionGraph()
    expected = mean_steps - 1  # of a geometric walk, from any step
    remaining = graph.remaining("a", mean_steps)
    assert remaining.steps == pytest.approx(expected)
    assert remaining.steps <= mean_steps - 1 + 1e-9
    assert remaining.new_tokens == pytest.approx(expected * 400)
    assert remaining.output_tokens == pytest.approx(expected * 200)


def test_remaining_work_is_cut() -> None:
    assert learned(("a", "a", "b")).remaining("a").steps == 3
    assert learned(("a", "a", "b")).remaining("a", max_depth=2).steps == 2


def test_remaining_work_uses_means_of_what_was_seen() -> None:
    graph = learned(("a", "b"), ("a",), new_tokens=100)
    graph.output_tokens.add(50)
    remaining = graph.remaining("a")
    assert remaining.steps == pytest.approx(0.75)  # every other goes on, 1.5 steps on average
    assert remaining == RemainingWork(remaining.steps, remaining.steps * 100, remaining.steps * 50)


def test_remaining_work_adds_up() -> None:
    total = RemainingWork(1, 2, 3) + RemainingWork(10, 20, 30)
    assert total == RemainingWork(11, 22, 33)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200))
def test_rare_tools_share_one_node(tools: list[int]) -> None:
    graph = AgentExecutionGraph(max_nodes=8)
    for before, after in pairwise(tools):
        graph.observe_step(f"tool {before}", f"tool {after}", new_tokens=1)
        graph.observe_end(f"tool {after}", 2)
    assert len(graph.nodes) <= 8 + 1
    for node in graph.nodes.values():
        assert node.num_left == node.successors.total()


def test_a_rare_tool_is_told_by_its_like() -> None:
    graph = AgentExecutionGraph(max_nodes=2)
    for _ in range(30):
        watch(graph, ("a", "b"))
    for _ in range(3):
        watch(graph, ("rare", "a", "b"))
    watch(graph, ("seldom",))
    assert graph.p_continue("rare") == graph.p_continue("seldom") == pytest.approx(3 / 4)


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=6).map(tuple),
        min_size=30,
        max_size=40,
    )
)
def test_p_continue_is_the_share_of_steps_that_went_on(
    walks: list[tuple[str | None, ...]],
) -> None:
    graph = learned(*walks, times=1)
    for tool in {tool for walk in walks for tool in walk}:
        left = sum(walk.count(tool) for walk in walks)
        ended = sum(walk[-1] == tool for walk in walks)
        assert graph.p_continue(tool) == pytest.approx(1 - ended / left)
    assert graph.steps.value(0) == pytest.approx(sum(map(len, walks)) / len(walks))
    assert END not in graph.nodes and START not in graph.nodes


def test_looking_at_a_graph_leaves_no_trace() -> None:
    store = GraphStore()
    assert store["coder"].num_sessions == 0
    assert len(store) == 0
    store.learn("coder").observe_end(None, 1)
    assert store["coder"].num_sessions == 1
    assert store["coder"] is store.learn("coder")


def test_a_session_is_told_what_its_types_graph_says() -> None:
    store, tenant = GraphStore(), Tenant(id="t")
    coder = Workflow(
        id="w", tenant=tenant, agent_type="coder", submitted=0, ranked_at=0, mean_steps=5.0
    )
    session = Session(id="s", workflow=coder, resident_tokens=900)
    assert store.remaining(session) == AgentExecutionGraph().remaining(START, 5.0)
    store.learn("coder").observe_step("shell", "shell", new_tokens=100)
    session.tool, session.num_steps = "shell", 1
    assert (
        store.p_reuse(session) == store["coder"].p_reuse("shell", 900, 5.0) == pytest.approx(0.72)
    )
    assert store.remaining(session) == store["coder"].remaining("shell", 5.0)
    coder.mean_steps = None
    assert store.p_reuse(session) is None
    assert list(store.known()) == ["coder"]


def test_the_type_that_has_not_learned_for_longest_is_forgotten() -> None:
    store = GraphStore(max_types=2)
    for agent_type in ("a", "b", "a", "c"):
        store.learn(agent_type).observe_end(None, 1)
    assert len(store) == 2
    assert [store[agent_type].num_sessions for agent_type in "abc"] == [2, 0, 1]
