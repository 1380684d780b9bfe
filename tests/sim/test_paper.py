import numpy as np
import pytest

from saga.sim.paper import BURSTGPT, SWE_BENCH, TOOLS, WEBARENA, AgentSpec
from saga.traces import WorkflowScript, check_script

AGENTS = [SWE_BENCH, WEBARENA, *BURSTGPT.values()]


def drawn(agent: AgentSpec, num: int = 250, tool_cv: float | None = None) -> list[WorkflowScript]:
    return [agent.draw(np.random.default_rng(seed), tool_cv) for seed in range(num)]


@pytest.mark.parametrize(
    ("tool", "p50_ms", "p95_ms", "p99_ms"),
    [
        ("code_execution", 180, 2_400, 28_000),
        ("file_operation", 45, 320, 1_200),
        ("web_api", 850, 4_500, 45_000),
        ("database_query", 120, 890, 3_500),
    ],
)
def test_tool_latencies_have_the_published_quantiles(
    tool: str, p50_ms: float, p95_ms: float, p99_ms: float
) -> None:
    found = TOOLS[tool].sample(np.array([0.5, 0.95, 0.99]))
    assert found == pytest.approx([p50_ms * 1e3, p95_ms * 1e3, p99_ms * 1e3])


@pytest.mark.parametrize("tool", TOOLS)
def test_the_mean_latency_is_that_of_the_samples(tool: str) -> None:
    levels = (np.arange(1_000_000) + 0.5) / 1_000_000
    assert TOOLS[tool].sample(levels).mean() == pytest.approx(TOOLS[tool].mean, rel=1e-3)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.agent_type)
def test_sizes_stay_in_the_papers_ranges_and_contexts_grow(agent: AgentSpec) -> None:
    for script in drawn(agent, 50):
        check_script(script)
        (session,) = script.sessions
        assert 1 <= len(session.steps) <= agent.max_steps
        assert agent.first_prompt[0] <= session.steps[0].prompt_tokens <= agent.first_prompt[1]
        assert session.prefix_tokens == agent.first_prompt[0] // 2
        context = session.prefix_tokens
        for step in session.steps:
            assert agent.output[0] <= step.output_tokens <= agent.output[1]
            assert step.kept_tokens == context
            assert step.tool_us == step.gap_us
            context = step.prompt_tokens + step.output_tokens
        assert [step.tool is None for step in session.steps].index(True) == len(session.steps) - 1


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.agent_type)
def test_means_and_shares_are_the_papers(agent: AgentSpec) -> None:
    scripts = drawn(agent)
    steps = [step for script in scripts for step in script.sessions[0].steps]
    counts = np.array([script.num_steps for script in scripts])
    # Clipping at 150 takes 14 % of the heavy agent's mean of 100.
    expected = 86 if agent.mean_steps == 100 else agent.mean_steps
    assert counts.mean() == pytest.approx(expected, rel=0.1)
    observed = [step.new_tokens for step in steps if step.kept_tokens != agent.prefix_tokens]
    assert np.mean(observed) == pytest.approx(agent.mean_observation, rel=0.05)
    called = [step.tool for step in steps if step.tool]
    for tool, share in agent.tools.items():
        assert called.count(tool) / len(called) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("cv", [0.5, 1.0])
def test_another_cv_of_the_tools_changes_their_times_only(cv: float) -> None:
    as_published, changed = drawn(SWE_BENCH), drawn(SWE_BENCH, tool_cv=cv)
    times: dict[str, list[int]] = {tool: [] for tool in TOOLS}
    for one, other in zip(as_published, changed, strict=True):
        for before, after in zip(one.sessions[0].steps, other.sessions[0].steps, strict=True):
            assert (before.prompt_tokens, before.output_tokens, before.tool) == (
                after.prompt_tokens,
                after.output_tokens,
                after.tool,
            )
            if after.tool is not None:
                times[after.tool].append(after.tool_us)
    for tool in ("code_execution", "file_operation"):
        assert np.mean(times[tool]) == pytest.approx(TOOLS[tool].mean, rel=0.1)
        assert np.std(times[tool]) / np.mean(times[tool]) == pytest.approx(cv, rel=0.2)
