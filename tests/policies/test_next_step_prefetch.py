import pytest
from tests.policies.factory import SECOND, Cluster, engine, seen, session

from saga.core.return_times import ReturnTimes
from saga.policies.next_step_prefetch import NextStepPrefetch

NOW = 100 * SECOND


def at(policy: NextStepPrefetch, times: ReturnTimes, tool: str | None = "shell") -> int | None:
    home = engine()
    acting = session(home=home, tool=tool, num_steps=1)
    return policy.at(acting, Cluster(engines=[home], now=NOW, return_times=times))


def test_a_second_before_the_median_return() -> None:
    times = seen("shell", 3 * SECOND, 8 * SECOND, 60 * SECOND)
    assert at(NextStepPrefetch(), times) == NOW + 7 * SECOND


def test_lead_and_percentile_are_parameters() -> None:
    times = seen("shell", 3 * SECOND, 8 * SECOND, 60 * SECOND)
    assert at(NextStepPrefetch(lead_s=2.5), times) == NOW + 5 * SECOND + SECOND // 2
    assert at(NextStepPrefetch(percentile=1.0), times) == NOW + 59 * SECOND


@pytest.mark.parametrize(("usual_us", "planned"), [(1_999_999, False), (2_000_000, True)])
def test_short_gaps_are_not_worth_it(usual_us: int, planned: bool) -> None:
    assert (at(NextStepPrefetch(), seen("shell", usual_us)) is not None) is planned


def test_a_tool_never_seen_is_not_guessed() -> None:
    assert at(NextStepPrefetch(), seen("shell", 9 * SECOND), tool="browser") is None


def test_steps_without_a_tool_have_return_times_too() -> None:
    assert at(NextStepPrefetch(), seen(None, 9 * SECOND), tool=None) == NOW + 8 * SECOND
