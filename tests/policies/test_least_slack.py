from hypothesis import given
from hypothesis import strategies as st
from tests.policies.factory import SECOND, Cluster, engine, request, session, workflow

from saga.core.model import Request, Session, SessionState, Workflow
from saga.policies.least_slack import LeastSlack

STEP_US = 30 * SECOND
"""Of usual workflows, with the return time."""


def cluster_at(now_s: float = 0.0) -> Cluster:
    """Workflows of type ``agent`` did ten steps in 300 s; any step is the last with 1/10."""
    cluster = Cluster(engines=(engine(),), now=int(now_s * SECOND))
    graph = cluster.graphs.learn("agent")
    for _ in range(100):
        graph.observe_start("shell")
        for _ in range(9):
            graph.observe_step("shell", "shell", new_tokens=60)
        graph.observe_end("shell", 10)
        graph.ideal_us.add(10 * STEP_US)
    return cluster


def asked(of: Workflow, *, steps: int = 0, parent: Session | None = None) -> Request:
    """A request of a session that did so many steps: nine of ten are followed by ten more."""
    name = f"{of.id}/{len(of.sessions)}"
    own = session(
        name,
        of=of,
        num_steps=steps,
        tool="shell" if steps else None,
        parent=None if parent is None else parent.id,
    )
    of.sessions[name] = own
    return request(name, of=own)


def key(asks: Request, *, now_s: float = 0.0, policy: LeastSlack | None = None) -> float:
    return (policy or LeastSlack()).key(asks, cluster_at(now_s)) / SECOND


def test_without_deadlines_age_counts() -> None:
    """In time is within 1.5 times 300 s; a new one takes all of that, others 9 / 10 of it."""
    old, new = workflow("old", ranked_at=0), workflow("new", ranked_at=7 * SECOND)
    assert key(asked(old)) == 450 - 300
    assert key(asked(new)) == 7 + 450 - 300
    assert key(asked(old, steps=3)) == 450 - 270


def test_a_deadline_that_is_near_goes_first_and_one_that_is_far_later() -> None:
    usual = key(asked(workflow("usual")))
    near, far = (workflow("w", deadline=seconds * SECOND) for seconds in (310, 5_000))
    assert key(asked(near)) == 310 - 300 < usual
    assert key(asked(far)) == 5_000 - 300 > usual


def test_a_deadline_that_cannot_be_met_counts_no_more() -> None:
    """Else those that are late anyway would make others late, too."""
    late = workflow("late", deadline=350 * SECOND, ranked_at=3 * SECOND)
    assert key(asked(late), now_s=50.0) == 350 - 300
    assert key(asked(late), now_s=50.1) == key(asked(workflow("usual", ranked_at=3 * SECOND)))


def test_priority_divides_the_time_that_is_allowed() -> None:
    usual, urgent, patient = (workflow("w", priority=value) for value in (1.0, 3.0, 0.1))
    assert key(asked(urgent)) == 150 - 300
    assert key(asked(patient)) == 4_500 - 300
    assert key(asked(urgent)) < key(asked(usual)) < key(asked(patient))
    assert key(asked(usual), policy=LeastSlack(stretch=3.0)) == 900 - 300


def test_a_type_that_was_never_seen_to_end_goes_by_age() -> None:
    """Less the GPU time that is expected: ten steps of 400 and 200 tokens at 2 and 20 us."""
    stranger = asked(workflow("stranger", agent_type="other", ranked_at=5 * SECOND))
    assert key(stranger) == 5 - 10 * (400 * 2 + 200 * 20) / SECOND


def test_what_blocks_a_join_goes_first_and_of_that_the_longest() -> None:
    owner = workflow("owner")
    root = asked(owner, steps=4).session
    root.state = SessionState.ACTING
    long, short = asked(owner, parent=root), asked(owner, parent=root, steps=1)
    assert key(long) == 450 - 300 - 270, "the rest of its parent comes after it"
    assert key(long) < key(short)
    blocking = key(short)
    root.state = SessionState.REASONING
    assert key(short) == 450 - 270 > blocking, "its parent goes on without it"


def test_lineages_that_make_no_sense_end() -> None:
    owner = workflow("owner")
    first = asked(owner)
    second = asked(owner, parent=first.session)
    first.session.parent = second.session.id
    assert key(second) == 450 - 600
    second.session.parent = "nobody"
    assert key(second) == 450 - 300


@given(
    later_s=st.floats(0.0, 10_000.0),
    steps=st.integers(0, 5),
    other_steps=st.integers(0, 5),
    priority=st.floats(0.1, 10.0),
)
def test_nobody_waits_for_those_that_come_much_later(
    later_s: float, steps: int, other_steps: int, priority: float
) -> None:
    """A workflow is overtaken only by such as come within the time allowed, and what they take."""
    old = workflow("old", priority=priority)
    new = workflow("new", ranked_at=int(later_s * SECOND), priority=priority)
    if key(asked(new, steps=other_steps)) < key(asked(old, steps=steps)):
        assert later_s <= 300.0
