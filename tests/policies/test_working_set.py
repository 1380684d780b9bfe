from dataclasses import replace
from math import e, log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.factory import SECOND, Cluster, engine, request, session, workflow

from saga.core.model import Engine, Request, Session, Tenant
from saga.core.policy import Verdict
from saga.policies.working_set import WorkingSet

POLICY = WorkingSet(kappa=1.0, reserve=0.2)


def cluster_of(*engines: Engine, entitled: float = 0.0) -> Cluster:
    """Where sessions add 100 tokens a step and do ten on average, and so end at 1,000."""
    cluster = Cluster(engines=engines, entitled=entitled)
    graph = cluster.graphs.learn("agent")
    graph.output_tokens.add(40)
    for _ in range(3_000):
        for _ in range(9):
            graph.observe_step("shell", "shell", new_tokens=60)
        graph.observe_end("shell", 10)
    return cluster


def admits(
    *engines: Engine, prompt: int = 1_100, policy: WorkingSet = POLICY, entitled: float = 0.0
) -> bool:
    """A newcomer, by default with a prompt so long that no growth is expected."""
    verdict = policy.admit(request(prompt=prompt), cluster_of(*engines, entitled=entitled))
    assert verdict.reason
    return verdict.admit


@pytest.mark.parametrize(("committed", "fits"), [(7_899, True), (7_900, True), (7_901, False)])
def test_the_boundary_is_the_capacity(committed: int, fits: bool) -> None:
    """10,000 tokens; two sessions grow by 500 each, the newcomer needs 1,100."""
    busy = engine(committed_tokens=committed, growth_tokens=1_000, num_sessions=2)
    assert admits(busy) is fits


@pytest.mark.parametrize(("kappa", "fits"), [(0.75, False), (0.76, True), (1.5, True)])
def test_kappa_scales_the_capacity(kappa: float, fits: bool) -> None:
    busy = engine(committed_tokens=6_000, growth_tokens=500, num_sessions=1)  # in all 7,600
    assert admits(busy, policy=WorkingSet(kappa=kappa, reserve=0.0)) is fits


@pytest.mark.parametrize(("entitled", "fits"), [(1_099, False), (1_100, True)])
def test_the_reserve_is_for_tenants_below_their_share(entitled: float, fits: bool) -> None:
    full = engine(committed_tokens=9_000, num_sessions=1)
    assert not admits(full)
    assert admits(full, entitled=entitled) is fits
    overfull = engine(committed_tokens=11_000, num_sessions=1)
    assert not admits(overfull, entitled=1e9)


@pytest.mark.parametrize(("parent", "fits"), [(None, True), ("root", False)])
def test_sub_agents_of_a_tenant_with_its_share_leave_room(parent: str | None, fits: bool) -> None:
    """Else one that forks a hundred of them would take all there is."""
    ask = request(of=session(parent=parent), prompt=1_100)
    busy = engine(committed_tokens=7_000, num_sessions=1)
    assert POLICY.admit(ask, cluster_of(busy)).admit is fits
    assert POLICY.admit(ask, cluster_of(busy, entitled=1_100)).admit, "it has less than its share"


def test_growth_is_what_the_graph_expects() -> None:
    cluster = cluster_of(engine())
    grown = [POLICY.growth_tokens(session(), tokens, cluster) for tokens in (0, 500, 1_100, 9_000)]
    assert grown == pytest.approx([367, 106, 0, 0], abs=4), "1,000 / e, 1,000 / sqrt(e) - 500, ..."


def test_growth_before_anything_is_known() -> None:
    """20 steps of 600 tokens, or as many steps as were declared; the end is at most of these / e"""
    cluster = Cluster(engines=[engine()])
    assert POLICY.growth_tokens(session(), 0, cluster) == int(12_000 / e)
    declared = session(of=workflow(mean_steps=100.0))
    assert POLICY.growth_tokens(declared, 0, cluster) == int(60_000 / e)


def test_sessions_under_way_count_though_none_has_ended() -> None:
    """The first to end are the short ones: nobody should be taken in by them."""
    cluster = Cluster(engines=[engine()])
    before = POLICY.growth_tokens(session(), 0, cluster)
    graph = cluster.graphs.learn("agent")
    graph.output_tokens.add(200)
    for _ in range(1_000):
        graph.observe_step("shell", "shell", new_tokens=400)
    assert POLICY.growth_tokens(session(), 0, cluster) > 10 * before


def test_an_empty_engine_always_admits() -> None:
    assert admits(engine(), prompt=9_999)
    assert admits(engine(), policy=WorkingSet(kappa=0.001, reserve=0.0))


def test_one_engine_with_room_is_enough() -> None:
    full = engine("full", committed_tokens=10_000, num_sessions=1)
    assert not admits(full, full)
    assert admits(full, full, engine("some", committed_tokens=2_000, num_sessions=1))


def test_a_larger_newcomer_needs_more() -> None:
    busy = engine(committed_tokens=7_000, num_sessions=1)
    assert admits(busy, prompt=3_000)
    assert not admits(busy, prompt=3_001)


def test_how_long_an_absent_session_counts() -> None:
    cluster = Cluster(engines=[engine()])
    for seconds in range(1, 101):
        cluster.return_times.observe("shell", seconds * 1_000_000)
    policy = WorkingSet(absent_unknown_s=60.0, absent_floor_s=5.0)
    assert policy.absence_us(session(tool="shell"), cluster) == 95_000_000
    assert policy.absence_us(session(tool="new tool"), cluster) == 60_000_000
    assert policy.absence_us(session(tool=None), cluster) == 5_000_000, "it may be over"
    cluster.return_times.observe(None, 40_000_000)
    assert policy.absence_us(session(tool=None), cluster) == 40_000_000
    quick = WorkingSet(absent_percentile=0.5, absent_floor_s=60.0)
    assert quick.absence_us(session(tool="shell"), cluster) == 60_000_000


# ---- deadlines


def seen(*seconds: float) -> Cluster:
    """At 100 s, where workflows took so long."""
    cluster = Cluster(engines=[engine()], now=100 * SECOND)
    for value in seconds:
        cluster.graphs.learn("agent").durations_us.observe(int(value * SECOND))
    return cluster


def makes(
    cluster: Cluster,
    left_s: float | None,
    *,
    wait_s: float = 0.0,
    steps: float | None = None,
    policy: WorkingSet = POLICY,
) -> Verdict:
    deadline = None if left_s is None else cluster.now + int(left_s * SECOND)
    asked = request(of=session(of=workflow(deadline=deadline, mean_steps=steps)))
    verdict = policy.makes(asked, int(wait_s * SECOND), cluster)
    assert verdict.reason
    return verdict


@pytest.mark.parametrize(("left_s", "hope"), [(19.9, False), (20.0, True), (1e6, True)])
def test_who_has_less_time_than_the_fastest_tenth_took_cannot_make_it(
    left_s: float, hope: bool
) -> None:
    cluster = seen(10, *(20,) * 10, *(300,) * 9)  # the second of twenty
    assert makes(cluster, left_s).admit is hope
    daring = WorkingSet(hopeless_quantile=0.01)
    assert makes(cluster, left_s - 10, policy=daring).admit is hope


def test_too_few_workflows_say_nothing() -> None:
    assert makes(seen(*(20,) * 9), 1).admit
    assert not makes(seen(*(20,) * 10), 1).admit


def test_a_deadline_that_is_over_needs_no_knowledge() -> None:
    assert makes(seen(), 0.001).admit
    assert makes(seen(), -30).reason == "its deadline was 30.0 s ago"
    assert not makes(seen(), 0).admit


def test_the_wait_for_admission_counts() -> None:
    cluster = seen(*(80,) * 10)
    assert makes(cluster, 100, wait_s=20).admit
    refused = makes(cluster, 99, wait_s=20)
    assert refused == Verdict(
        False,
        "its deadline is in 99.0 s, and 90 % of workflows of type agent take at least 80.0 s, "
        "after a wait of about 20.0 s for memory",
    )
    assert makes(seen(), 1, wait_s=1_000).admit, "how long it takes then is not known"


def test_declared_steps_say_what_their_gpu_time_is_at_least() -> None:
    """50 steps of 400 and 200 tokens, at 2 and 20 us: 0.24 s, of which no tenth of the workflows
    takes less than ln(10 / 9) if their numbers of steps are exponential."""
    least_s = 0.24 * log(10 / 9)
    assert makes(seen(), least_s * 1.01, steps=50).admit
    refused = makes(seen(), least_s * 0.99, steps=50)
    assert not refused.admit
    assert "90 % of workflows of 50 steps on average" in refused.reason
    assert makes(seen(*(0.001,) * 10), 0.002, steps=50).admit, "what was learned is better"


def test_nobody_is_refused_who_need_not_be() -> None:
    cluster = seen(*(80,) * 10)
    for left_s in (-5, 1):
        assert makes(cluster, left_s, policy=WorkingSet(refuse_hopeless=False)).admit
    assert makes(cluster, None, wait_s=1e6).admit


@given(
    seconds=st.lists(st.floats(0, 100), max_size=20),
    wait_s=st.floats(0, 50),
    left_s=st.tuples(st.floats(-10, 200), st.floats(-10, 200)),
    steps=st.none() | st.floats(0.5, 1_000),
    quantile=st.floats(0.01, 0.99),
)
def test_law_more_time_never_takes_hope_away(
    seconds: list[float],
    wait_s: float,
    left_s: tuple[float, float],
    steps: float | None,
    quantile: float,
) -> None:
    cluster, policy = seen(*seconds), WorkingSet(hopeless_quantile=quantile)
    sooner, later = (
        makes(cluster, left, wait_s=wait_s, steps=steps, policy=policy).admit
        for left in sorted(left_s)
    )
    assert sooner <= later


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1])
def test_a_quantile_that_makes_no_sense_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="hopeless_quantile"):
        WorkingSet(hopeless_quantile=bad)


@pytest.mark.parametrize(
    "bad", [{"absent_percentile": 0.0}, {"absent_unknown_s": -1.0}, {"absent_floor_s": -1.0}]
)
def test_absences_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="absent_"):
        WorkingSet(**bad)


# ---- going on after a tool


def back(prompt: int = 1_000, *, on: Engine, ranked_at: int = 0, admitted_at: int = 0) -> Request:
    """Its session did a step there and is back; 100 output tokens are expected."""
    own = session(
        "back",
        of=workflow("back", ranked_at=ranked_at),
        assigned=on,
        committed_tokens=prompt,
        context_tokens=prompt,
        admitted_at=admitted_at,
        num_steps=1,
    )
    on.sessions["back"] = own
    on.committed_tokens += prompt
    return request(of=own, prompt=prompt)


def beside(
    on: Engine, name: str, tokens: int, *, ranked_at: int = 0, tenant: Tenant | None = None
) -> Session:
    """Another session there, in since the beginning."""
    other = session(
        name,
        of=workflow(name, ranked_at=ranked_at, tenant=tenant),
        assigned=on,
        committed_tokens=tokens,
    )
    on.sessions[name] = other
    on.committed_tokens += tokens
    return other


@pytest.mark.parametrize(("prompt", "stays"), [(1_899, True), (1_900, True), (1_901, False)])
def test_the_youngest_waits_when_contexts_have_outgrown_the_memory(
    prompt: int, stays: bool
) -> None:
    here = engine()  # of 10,000
    beside(here, "old", 8_000, ranked_at=1)
    young = back(prompt, on=here, ranked_at=2)
    assert POLICY.stay(young, cluster_of(here, entitled=1e9)).admit is stays


def test_older_ones_keep_their_memory() -> None:
    here = engine()
    beside(here, "young", 8_000, ranked_at=2)
    old = back(5_000, on=here, ranked_at=1)
    assert POLICY.stay(old, cluster_of(here, entitled=1e9)).admit


def test_tenants_within_their_share_keep_their_memory() -> None:
    here, hog = engine(), Tenant(id="hog", committed_tokens=8_000)
    beside(here, "old", 8_000, ranked_at=1, tenant=hog)
    young = back(5_000, on=here, ranked_at=2)
    assert POLICY.stay(young, cluster_of(here, entitled=6_000.0)).admit
    assert not POLICY.stay(young, cluster_of(here, entitled=9_000.0)).admit, "as the hog is, too"


def test_whoever_is_alone_goes_on() -> None:
    here = engine()
    assert POLICY.stay(back(50_000, on=here), cluster_of(here)).admit


def test_a_session_whose_engine_is_gone_is_a_newcomer() -> None:
    lost = request(of=session(num_steps=3), prompt=1_100)
    full = engine(committed_tokens=9_000, num_sessions=1)
    assert not POLICY.stay(lost, cluster_of(full)).admit
    assert POLICY.stay(lost, cluster_of(engine())).admit


# ---- giving way

PATIENT = WorkingSet(kappa=1.0, reserve=0.0, patience_s=100.0, turning=0.05)


def outstays(
    here: Engine, returned: Request, *, first: Request, now_s: float, entitled: float = 1e9
) -> bool:
    cluster = replace(cluster_of(here, entitled=entitled), now=int(now_s * SECOND))
    verdict = PATIENT.outstay(returned, first, cluster)
    assert verdict.reason
    return not verdict.admit


def newcomer(
    prompt: int = 1_100, *, arrived_s: float = 0.0, tenant: Tenant | None = None
) -> Request:
    waits = session("first", of=workflow("first", tenant=tenant))
    return request("first", of=waits, prompt=prompt, arrived=int(arrived_s * SECOND))


@pytest.mark.parametrize(("now_s", "gives_way"), [(100.0, False), (100.1, True)])
def test_patience_ends(now_s: float, gives_way: bool) -> None:
    here = engine(committed_tokens=9_500)
    returned = back(500, on=here)
    assert outstays(here, returned, first=newcomer(), now_s=now_s) is gives_way


@pytest.mark.parametrize(("admitted_s", "gives_way"), [(4.9, True), (5.1, False)])
def test_nobody_gives_way_before_the_own_turn_is_over(admitted_s: float, gives_way: bool) -> None:
    here = engine(committed_tokens=9_500)
    returned = back(500, on=here, admitted_at=int(admitted_s * SECOND))
    assert outstays(here, returned, first=newcomer(), now_s=105.0) is gives_way


@pytest.mark.parametrize(("now_s", "gives_way"), [(125.0, False), (125.1, True)])
def test_the_cheapest_context_goes_first_unless_there_is_a_hurry(
    now_s: float, gives_way: bool
) -> None:
    here = engine(committed_tokens=7_000)
    beside(here, "cheaper", 1_000)
    returned = back(2_000, on=here)
    assert outstays(here, returned, first=newcomer(), now_s=now_s) is gives_way


def test_turns_have_a_price() -> None:
    """1,000 tokens at 2 us; a twentieth of half an hour is 90 s, twice that in a hurry."""
    here = engine(committed_tokens=9_000)
    returned, first = back(1_000, on=here), newcomer()
    here.turns.append((0, 89.998 * SECOND))
    assert outstays(here, returned, first=first, now_s=101.0)
    here.turns.append((1, 10.0))
    assert not outstays(here, returned, first=first, now_s=101.0)
    assert outstays(here, returned, first=first, now_s=126.0)
    here.turns.append((2, 90 * SECOND))
    assert not outstays(here, returned, first=first, now_s=126.0)
    assert outstays(here, returned, first=first, now_s=1_801.0), "long ago"


def test_who_has_more_memory_is_not_given_more() -> None:
    poor, rich = (Tenant(id="t", committed_tokens=tokens) for tokens in (1_000, 2_000))
    here = engine(committed_tokens=9_000)
    returned = back(1_000, on=here)
    returned.session.workflow.tenant.committed_tokens = 1_500
    assert outstays(here, returned, first=newcomer(tenant=poor), now_s=101.0)
    assert not outstays(here, returned, first=newcomer(tenant=rich), now_s=101.0)
    rich.weight = 2.0
    assert outstays(here, returned, first=newcomer(tenant=rich), now_s=101.0)
    assert not outstays(here, returned, first=newcomer(tenant=rich), now_s=101.0, entitled=1_999.0)


def test_nobody_gives_way_for_nothing() -> None:
    """Its memory would not do, and another engine is closer to having room."""
    here, there = engine("here", committed_tokens=9_000), engine("there", committed_tokens=9_000)
    returned, large = back(500, on=here), newcomer(3_000)
    beside(there, "other", 100)
    cluster = replace(cluster_of(here, there, entitled=1e9), now=101 * SECOND)
    assert PATIENT.outstay(returned, large, cluster).admit
    beside(there, "another", 900)
    assert not PATIENT.outstay(returned, large, cluster).admit, "its own engine is the closest"


def test_nobody_gives_way_on_an_engine_that_drains_or_without_memory() -> None:
    here = engine(committed_tokens=9_000)
    returned = back(1_000, on=here)
    here.draining = True
    assert not outstays(here, returned, first=newcomer(), now_s=101.0)
    returned.session.assigned = None
    assert not outstays(here, returned, first=newcomer(), now_s=101.0)


def test_a_tenant_that_has_the_cluster_to_itself_takes_turns_however_much_it_expects() -> None:
    here = engine(committed_tokens=9_000)
    returned, lone = back(1_000, on=here), Tenant(id="t", committed_tokens=90_000)
    returned.session.workflow.tenant.committed_tokens = 90_000
    first = newcomer(tenant=lone)
    assert outstays(here, returned, first=first, now_s=101.0, entitled=10_000.0)
    assert not outstays(here, returned, first=first, now_s=101.0, entitled=9_999.0)


def test_nobody_gives_way_to_its_own_kin() -> None:
    here = engine(committed_tokens=9_000)
    returned = back(1_000, on=here)
    child = request("child", of=session("child", of=returned.session.workflow), prompt=1_100)
    assert not outstays(here, returned, first=child, now_s=200.0)


def test_on_an_engine_that_drains_a_session_is_a_newcomer() -> None:
    here = engine("here")
    returned = back(1_100, on=here)
    here.draining = True
    full = engine("full", committed_tokens=9_000, num_sessions=1)
    assert not POLICY.stay(returned, cluster_of(full)).admit
    assert POLICY.stay(returned, cluster_of(engine("empty"))).admit
