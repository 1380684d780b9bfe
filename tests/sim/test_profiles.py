from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.shared_data import shared_data

from saga.sim.profiles import LEVELS, Profile, draw_session, load_profiles, quantiles
from saga.traces import SessionScript, WorkflowScript, check_script, read_scripts

__all__ = ["shared_data"]

POPULATIONS = load_profiles()
PROFILES = [agent.profile for one in POPULATIONS.values() for agent in one.agents]
SOURCES = {
    "claude-code": "weka_claude_code",
    "mini-swe": "miniswe_deepseek",
    "swe-agent": "thunder_sweagent_glm45",
    "tau2": "tau2_bench",
}


@cache
def drawn(name: str, num: int = 400) -> list[WorkflowScript]:
    return [POPULATIONS[name].draw(np.random.default_rng(seed)) for seed in range(num)]


@given(st.sampled_from(PROFILES), st.integers(0, 2**64))
def test_every_session_keeps_the_laws(profile: Profile, seed: int) -> None:
    session = draw_session(profile, np.random.default_rng(seed))
    check_script(WorkflowScript(id="w", sessions=(session,)))


def test_tables_give_their_own_quantiles_and_rise_in_between() -> None:
    tables = [PROFILES[0].steps, PROFILES[1].steps]
    rows = np.repeat([0, 1], len(LEVELS))
    found = quantiles(tables, rows, np.array(LEVELS * 2))
    assert found == pytest.approx([*tables[0], *tables[1]])
    between = quantiles(tables, np.zeros(1000, dtype=np.intp), np.linspace(0, 1, 1000))
    assert np.all(np.diff(between) >= -1e-9)


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_tables_are_complete(name: str) -> None:
    assert sum(agent.share for agent in POPULATIONS[name].agents) == pytest.approx(1)
    for agent in POPULATIONS[name].agents:
        profiles = [agent.profile, *([agent.subagents.profile] if agent.subagents else [])]
        for profile in profiles:
            tools = profile.tools
            assert sum(tool.first for tool in tools) == pytest.approx(1, abs=1e-3)
            assert sum(tool.last for tool in tools) == pytest.approx(1, abs=1e-3)
            for tool in tools:
                assert sum(tool.next) == pytest.approx(1, abs=1e-3)
                for table in (tool.output, tool.observation, tool.gap_s, profile.steps):
                    assert len(table) == len(LEVELS)
                    assert list(table) == sorted(table)


def test_the_file_is_small() -> None:
    assert len(msgspec.json.encode(POPULATIONS)) < 60_000


def test_browser_agents_see_one_page_at_a_time() -> None:
    """Each prompt keeps what was before the page, and repeats the output behind that."""
    for script in drawn("browser", 50):
        steps = script.sessions[0].steps
        history = steps[0].prompt_tokens
        for before, step in pairwise(steps):
            assert step.kept_tokens == history
            assert step.new_tokens > before.output_tokens
            history += before.output_tokens


def test_some_claude_code_sessions_have_subagents_that_are_waited_for() -> None:
    scripts = drawn("claude-code")
    parents = [script for script in scripts if len(script.sessions) > 1]
    assert len(parents) / len(scripts) == pytest.approx(0.0225, abs=0.015)
    for script in parents:
        check_script(script)
        for child in script.sessions[1:]:
            assert child.blocking
            assert child.spawn_step < len(script.sessions[0].steps) - 1


def test_claude_code_contexts_are_compacted() -> None:
    """A prompt far shorter than the context before it keeps the shared prefix and no more."""
    roots = [script.sessions[0] for script in drawn("claude-code")]
    compacted = [
        (root, step)
        for root in roots
        for before, step in pairwise(root.steps)
        if step.prompt_tokens < 0.5 * before.prompt_tokens and before.prompt_tokens > 120_000
        if step.kept_tokens <= root.prefix_tokens
    ]
    assert len(compacted) > 40


Figure = Callable[[SessionScript], Iterable[float]]

FIGURES: dict[str, Figure] = {
    "steps": lambda session: [len(session.steps)],
    "first prompt": lambda session: [session.steps[0].prompt_tokens],
    "prompt": lambda session: [step.prompt_tokens for step in session.steps],
    "output": lambda session: [step.output_tokens for step in session.steps],
    "observation": lambda session: [step.new_tokens for step in session.steps[1:]],
    "gap": lambda session: [step.gap_us for step in session.steps[:-1]],
}
OTHER_SOURCE = {
    "claude-code": {"gap"},  # of another trace's tools
    "tau2": {"gap", "observation"},  # tools of the paper; prompts of unknown reuse left out
}
SCHEMA_TOKENS = {"swe-agent": 2000}


COMPARED = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""The share drawn below the trace's quantile at a level is to be near the level."""


def values(sessions: Sequence[SessionScript], figure: Figure) -> NDArray[np.float64]:
    return np.array([value for session in sessions for value in figure(session)])


@pytest.mark.parametrize("name", SOURCES)
def test_quantiles_are_near_those_of_the_trace(shared_data: Path, name: str) -> None:
    scripts = read_scripts(shared_data / f"{SOURCES[name]}.jsonl.gz").scripts
    source = [script.sessions[0] for script in scripts]
    like_it = [script.sessions[0] for script in drawn(name)]
    for what, figure in FIGURES.items():
        if what in OTHER_SOURCE.get(name, ()):
            continue
        added = SCHEMA_TOKENS.get(name, 0) if "prompt" in what else 0
        expected, found = values(source, figure) + added, values(like_it, figure)
        below = [np.mean(found <= np.quantile(expected, level)) for level in COMPARED]
        assert below == pytest.approx(COMPARED, abs=0.1), what
        assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.25), what


def test_reuse_is_near_that_of_the_trace(shared_data: Path) -> None:
    for name, file in SOURCES.items():
        if name == "tau2":
            continue  # its prompts of unknown reuse count as none in the trace
        scripts = read_scripts(shared_data / f"{file}.jsonl.gz").scripts
        assert reuse(drawn(name)) == pytest.approx(reuse(scripts), abs=0.005), name


def reuse(scripts: Sequence[WorkflowScript]) -> float:
    steps = [step for script in scripts for session in script.sessions for step in session.steps]
    return sum(step.kept_tokens for step in steps) / sum(step.prompt_tokens for step in steps)
