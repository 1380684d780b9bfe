"""What comes next: learned from any sequences, within bounds, and right where there is a rule."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.core.graph import END, OTHER, START
from saga.core.sequence import FURTHEST, MAX_LABELS, MAX_LENGTH, NextLabels, Path

TOOLS = st.one_of(st.none(), st.sampled_from("abcdef"), st.text(max_size=100))


def play(model: NextLabels, tools: list[str | None]) -> Path:
    path = Path()
    for tool in tools:
        model.learn(path, tool)
    model.end(path)
    return path


@settings(max_examples=60)
@given(st.lists(st.lists(TOOLS, max_size=20), max_size=12))
def test_chances_of_any_traffic_sum_to_one(sessions: list[list[str | None]]) -> None:
    model = NextLabels(max_contexts=40)
    for tools in sessions:
        path = Path()
        for tool in tools:
            chances = model.chances(path)
            assert not chances or sum(chances.values()) == pytest.approx(1)
            assert all(p >= 0 for p in chances.values())
            assert len(model.learn(path, tool)) <= max(MAX_LENGTH, len(OTHER))
        model.end(path)
        assert len(model) <= 40


def test_weights_stay_where_they_can_be_used() -> None:
    """Of pure chance every expert knows as little as the others, however long it goes on."""
    model, chance = NextLabels(max_contexts=300), Random(8)
    path = Path()
    for _ in range(6_000):
        model.learn(path, chance.choice("abcdefghijkl"))
        assert sum(model.chances(path).values()) == pytest.approx(1)
    assert max(model._weights) - min(model._weights) < 2 * FURTHEST


def test_a_path_goes_on_under_another_model_as_if_it_had_never_asked_the_first() -> None:
    """As after a graph was declared anew, with as much learned by both."""
    told = []
    for asks in (True, False):
        first, second = NextLabels(max_contexts=300), NextLabels(max_contexts=300)
        for model, then in ((first, "old"), (second, "new")):
            for _ in range(3):
                play(model, ["a", then])
        path = Path()
        first.learn(path, "a")
        second.learn(Path(), "a")
        if asks:
            first.chances(path)
        second.learn(path, "new")
        told.append((second.chances(Path()), second.chances(path)))
    assert told[0] == told[1]


@pytest.mark.parametrize("name", [END, START, OTHER])
def test_a_tool_can_be_called_like_one_of_ours(name: str) -> None:
    model = NextLabels(max_contexts=300)
    path = Path()
    for _ in range(20):
        assert model.learn(path, name) == OTHER
    assert END not in model.chances(path)


def test_asking_changes_nothing() -> None:
    asked, silent = NextLabels(max_contexts=100), NextLabels(max_contexts=100)
    chance = Random(4)
    for _ in range(20):
        tools: list[str | None] = [chance.choice("abc") for _ in range(8)]
        one, two = Path(), Path()
        for tool in tools:
            asked.chances(one)
            asked.chances(one)
            asked.learn(one, tool)
            silent.learn(two, tool)
        assert asked.chances(one) == silent.chances(two)
        asked.end(one)
        silent.end(two)


def test_a_rule_that_needs_three_steps_back_is_found() -> None:
    """After ``a x`` comes b, after ``c x`` comes d: a bigram cannot know."""
    model, chance = NextLabels(max_contexts=1_000), Random(5)
    right = 0
    for number in range(300):
        first = chance.choice("ac")
        path = Path()
        for tool in (first, "x", "y"):
            model.learn(path, tool)
        truth = "b" if first == "a" else "d"
        chances = model.chances(path)
        right += number >= 200 and bool(chances) and max(chances, key=chances.__getitem__) == truth
        model.learn(path, truth)
        model.end(path)
    assert right == 100


def test_it_learns_when_sessions_end() -> None:
    model = NextLabels(max_contexts=1_000)
    for _ in range(50):
        path = play(model, ["find", "edit", "submit"])
    assert model.chances(path)[END] > 0.9
    fresh = Path()
    assert model.chances(fresh).get(END, 0.0) < 0.1
    model.learn(fresh, "find")
    assert model.chances(fresh)["edit"] > 0.9


def test_what_a_session_does_itself_counts_at_once() -> None:
    model, chance = NextLabels(max_contexts=1_000), Random(6)
    for _ in range(30):
        play(model, [chance.choice("pqrstuvw") for _ in range(10)])
    path = Path()
    for tool in ["p", "q"] * 5 + ["p"]:
        model.learn(path, tool)
    chances = model.chances(path)
    assert max(chances, key=chances.__getitem__) == "q"


def test_a_million_tools_are_one_more() -> None:
    model, path = NextLabels(max_contexts=200), Path()
    labels = {model.learn(path, f"tool {number}") for number in range(2_000)}
    assert len(labels) == MAX_LABELS + 1
    assert OTHER in labels
    assert len(path.own) <= MAX_LABELS + 2


def test_a_label_of_which_nothing_is_declared_is_as_good_as_unknown() -> None:
    model, path = NextLabels(max_contexts=100), Path()
    model.declare({START: {}, "plan": {}})
    assert model.chances(path) == {}
    model.learn(path, "plan")
    assert model.chances(path) == {"plan": pytest.approx(1)}


def test_what_was_declared_holds_until_more_is_seen() -> None:
    model = NextLabels(max_contexts=100)
    model.declare({START: {"plan": 1.0}, "plan": {"act": 0.8, END: 0.2}})
    path = Path()
    assert model.chances(path) == {"plan": pytest.approx(1)}
    model.learn(path, "plan")
    chances = model.chances(path)
    assert max(chances, key=chances.__getitem__) == "act"
    for _ in range(100):
        play(model, ["plan", "rest"])
    path = Path()
    model.learn(path, "plan")
    assert model.chances(path)["rest"] > 0.8
