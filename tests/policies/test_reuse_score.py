import pytest
from tests.policies.factory import Cluster, engine, seen, session, workflow

from saga.policies.reuse_score import ReuseScore
from saga.policies.tool_ttl import ToolTtl


def test_it_scores_like_tool_ttl_and_protects_nothing() -> None:
    home = engine(resident_tokens=900)
    held = session(
        of=workflow(mean_steps=4.0), home=home, resident_tokens=900, tool="shell", num_steps=1
    )
    cluster = Cluster(engines=[home], now=7, return_times=seen("shell", 10**6))
    answer, with_ttl = ReuseScore().hold(held, cluster), ToolTtl().hold(held, cluster)
    assert answer is not None
    assert with_ttl is not None
    assert answer.until == 7
    assert answer.score == with_ttl.score == pytest.approx(0.75)


def test_nothing_to_say_while_the_graph_is_unknown() -> None:
    home = engine()
    assert ReuseScore().hold(session(home=home, tool="shell"), Cluster(engines=[home])) is None
