"""The simulator's host: plans, workflows, sub-agents, lost engines, clients that leave.

By hand unless said otherwise: a step of n new tokens lasts 1,000 + 10 n us.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.sim.factory import (
    SECOND,
    Played,
    chat,
    plain_time,
    plan_of,
    play,
    random_arrivals,
    random_scripts,
    small_cluster,
    step,
    workflow,
)

from saga.core.actions import Cancel, Dispatch, Move, Preempt, Prefetch, Reject
from saga.core.events import (
    BlocksStored,
    EngineDown,
    RequestArrived,
    RequestStarted,
    SessionOpened,
    WorkflowSubmitted,
)
from saga.report.fairness import finish_time_fairness
from saga.report.records import Outcome, WorkflowRecord
from saga.sim.counts import Counts
from saga.sim.engine import SimEngine
from saga.sim.engine_model import EngineSetup, light_engine
from saga.sim.hardware import ClusterSpec
from saga.sim.plan import EngineLoss, Plan
from saga.traces.script import SessionScript, WorkflowScript

AFFINITY = "vllm_apc_affinity"


def by_hand(
    scripts: list[WorkflowScript],
    arrivals: list[int] | None = None,
    *,
    preset: str = AFFINITY,
    cluster: ClusterSpec | None = None,
    **options: Any,
) -> Played:
    cluster = cluster or small_cluster(1, 100_000)
    step_time = plain_time(cluster, step_us=1_000, token_us=10)
    return play(
        preset, plan_of(scripts, arrivals, **options), cluster, step_time=step_time, check=True
    )


def arrivals_of(played: Played) -> dict[str, int]:
    return {e.request: e.at for e, _ in played.log if isinstance(e, RequestArrived)}


def records_of(played: Played) -> dict[str, WorkflowRecord]:
    return {each.id: each for each in played.record.workflows}


def outcomes_of(played: Played) -> set[Outcome]:
    return {each.outcome for each in played.record.workflows}


# ---- plans


SCRIPTS = [workflow(name, chat((40, 1))) for name in "abc"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan_of(SCRIPTS), "either arrivals or a number of agents"),
        (lambda: plan_of(SCRIPTS, [1, 2, 3], agents=1), "either arrivals or a number of agents"),
        (lambda: plan_of(SCRIPTS, [1, 3, 2]), "not monotonic: 2 after 3"),
        (lambda: plan_of(SCRIPTS, [-1, 3, 4]), "not monotonic: -1 after 0"),
        (lambda: plan_of(SCRIPTS, [1, 2]), "3 scripts, 2 arrivals"),
        (lambda: plan_of([*SCRIPTS, SCRIPTS[0]], [1, 2, 3, 4]), "ids are not unique"),
        (lambda: plan_of(SCRIPTS, agents=0), "agents=0: must be at least 1"),
        (lambda: plan_of(SCRIPTS, agents=1, stagger_us=-1), "stagger_us=-1"),
        (lambda: plan_of(SCRIPTS, agents=1, warmup=1.0), "warmup=1.0"),
        (lambda: plan_of(SCRIPTS, agents=1, client_timeout_us=0), "client_timeout_us=0"),
        (lambda: plan_of(SCRIPTS, agents=1, deadline_factor=0), "deadline_factor=0"),
        (lambda: Plan(scripts=SCRIPTS, agents=1, alone_us=[1], expected_us=[1] * 3), "1 alone_us"),
        (lambda: plan_of(SCRIPTS, agents=1, share_us=[1] * 4), "3 scripts, 4 share_us"),
        (lambda: EngineLoss(engine=-1, at=5), "engine -1"),
        (lambda: EngineLoss(engine=0, at=-5), "at -5 us"),
        (lambda: EngineLoss(engine=0, at=5, back=5), "is back at 5"),
        (lambda: lost_twice(None), "engine 0 is lost at 20 us, before it is back"),
        (lambda: lost_twice(20), "engine 0 is lost at 20 us, before it is back"),
    ],
)
def test_plans_that_cannot_be_played_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def lost_twice(back: int | None) -> Plan:
    losses = [EngineLoss(engine=0, at=20), EngineLoss(engine=0, at=10, back=back)]
    return plan_of(SCRIPTS, agents=1, losses=losses)


def test_an_engine_that_does_not_exist_cannot_be_lost() -> None:
    with pytest.raises(ValueError, match="engine 2 of 2 cannot be lost"):
        play(
            AFFINITY,
            plan_of(SCRIPTS, agents=1, losses=[EngineLoss(engine=2, at=1)]),
            small_cluster(2),
        )


def test_an_empty_plan_ends_at_once() -> None:
    played = play(AFFINITY, plan_of([], []), small_cluster(2))
    assert played.record.workflows == []
    assert played.record.end_us == 0


# ---- open and closed loops


def test_an_open_loop_submits_when_the_plan_says() -> None:
    played = by_hand(SCRIPTS, [0, 7, 7])
    assert arrivals_of(played) == {"a/0/0": 0, "b/0/0": 7, "c/0/0": 7}


def test_a_closed_loop_keeps_so_many_at_a_time() -> None:
    """Two agents: a's step begins before b comes, at the same time; c follows when a has ended."""
    played = by_hand(SCRIPTS, agents=2)
    assert arrivals_of(played) == {"a/0/0": 0, "b/0/0": 0, "c/0/0": 1_400}


def test_a_closed_loop_may_begin_staggered() -> None:
    """The second agent begins at 10,000, amid the decodes of a; b joins at 10,490, and c follows
    when b has ended, 1,410 us later."""
    scripts = [workflow("a", chat((40, 100))), *SCRIPTS[1:]]
    played = by_hand(scripts, agents=2, stagger_us=20_000)
    assert arrivals_of(played) == {"a/0/0": 0, "b/0/0": 10_000, "c/0/0": 11_900}


def test_more_agents_than_workflows() -> None:
    played = by_hand(SCRIPTS, agents=9)
    assert outcomes_of(played) == {Outcome.FINISHED}


def test_the_measured_window_is_from_the_first_measured_submission_to_the_last() -> None:
    """Of four workflows the first is warm-up. Those that end before the last arrives count."""
    scripts = [workflow(name, chat((40, 1))) for name in "abcd"]
    played = by_hand(scripts, [0, 5_000, 10_000, 20_000], warmup=0.25)
    record = played.record
    assert (record.start_us, record.end_us) == (5_000, 20_000)
    assert [each.measured for each in record.workflows] == [False, True, True, True]
    assert record.finished_in_window == 2
    assert record.tokens.prompt == 80
    assert len(record.ttft_us["default"]) == 3
    (usage,) = record.engines
    assert (usage.window_us, usage.busy_us) == (15_000, 2_800)


def test_kv_that_was_cut_off_is_dead() -> None:
    """160 tokens until 2,600, then idle; at 12,600 the session is back and keeps nothing. Its next
    prompt of 40 (three blocks) runs until 14,000."""
    session = SessionScript(steps=(step(0, 160, 1, gap=10_000), step(0, 40, 1)))
    (usage,) = by_hand([workflow("w", session)], [0]).record.engines
    assert usage.active == 160 * 2_600 + 48 * 1_400
    assert (usage.waiting, usage.dead, usage.later_hit) == (160 * 10_000, 160 * 1_400, 0)


# ---- workflows


def test_the_root_waits_for_blocking_sub_agents_and_then_for_its_tool() -> None:
    """The root's first step ends at 1,400. Its child begins 600 us later and ends at 3,400; then
    come the root's 5,000 us. Its prompt of 51 hits two blocks: 19 tokens, 1,190 us."""
    root = chat((40, 1), (10, 1), gap=5_000)
    child = chat((40, 1), parent=0, delay_us=600)
    played = by_hand([workflow("w", root, child)], [0])
    assert arrivals_of(played) == {"w/0/0": 0, "w/1/0": 2_000, "w/0/1": 8_400}
    (each,) = played.record.workflows
    assert each.tct_us == 9_590
    assert (each.tool_us, each.subagents_us) == (5_000, 2_000)
    assert (each.queue_us, each.prefill_us, each.decode_us) == (0, 1_400 + 1_190, 0)


def test_the_root_waits_for_the_last_of_its_sub_agents() -> None:
    root = chat((40, 1), (10, 1), gap=500)
    children = [chat((40, 1), parent=0, delay_us=delay) for delay in (20_000, 3_000, 9_000)]
    played = by_hand([workflow("w", root, *children)], [0])
    assert arrivals_of(played)["w/0/1"] == 1_400 + 20_000 + 1_400 + 500


def test_the_root_does_not_wait_for_the_others_but_the_workflow_does() -> None:
    """The root ends at 1,400 + 500 + 1,190; its child, which nobody waits for, at 22,800."""
    root = chat((40, 1), (10, 1), gap=500)
    child = chat((40, 1), parent=0, delay_us=20_000, blocking=False)
    played = by_hand([workflow("w", root, child)], [0])
    assert arrivals_of(played)["w/0/1"] == 1_900
    (each,) = played.record.workflows
    assert each.tct_us == 22_800
    assert each.subagents_us == 22_800 - 3_090


def test_sub_agents_after_the_last_step_belong_to_the_workflow() -> None:
    root, child = chat((40, 1)), chat((40, 1), parent=0, delay_us=100)
    grandchild = chat((40, 1), parent=1, delay_us=100)
    played = by_hand([workflow("w", root, child, grandchild)], [0])
    (each,) = played.record.workflows
    assert each.tct_us == 3 * 1_400 + 2 * 100
    parents = {e.session: e.parent for e, _ in played.log if isinstance(e, SessionOpened)}
    assert parents == {"w/0": None, "w/1": "w/0", "w/2": "w/1"}


def test_a_fork_hits_its_parents_kv() -> None:
    """The parent computed 100 + 12 - 1 tokens: 6 whole blocks. The fork shares 70: 4 blocks."""
    root = chat((100, 12))
    child = SessionScript(steps=(step(70, 30, 1),), parent=0, forked_tokens=70)
    played = by_hand([workflow("w", root, child)], [0])
    started = {e.request: e.cached_tokens for e, _ in played.log if isinstance(e, RequestStarted)}
    assert started == {"w/0/0": 0, "w/1/0": 64}


def test_a_declared_prefix_is_shared_by_workflows() -> None:
    scripts = [workflow(n, chat((30, 1), kept=64, prefix="p", prefix_tokens=64)) for n in "ab"]
    played = by_hand(scripts, [0, 50_000])
    started = {e.request: e.cached_tokens for e, _ in played.log if isinstance(e, RequestStarted)}
    assert started == {"a/0/0": 0, "b/0/0": 64}


def test_tenants_weights_and_declared_steps_are_told() -> None:
    scripts = [workflow("a", chat((40, 1)), tenant="t", agent_type="coder")]
    played = by_hand(scripts, [0], weights={"t": 2.5}, declared_steps={"coder": 12.0})
    (told,) = (e for e, _ in played.log if isinstance(e, WorkflowSubmitted))
    assert (told.tenant, told.weight, told.agent_type, told.mean_steps) == ("t", 2.5, "coder", 12.0)


# ---- what does not fit


@pytest.mark.parametrize("preset", ["vllm", AFFINITY, "saga_paper", "saga"])
@pytest.mark.parametrize("sizes", [(1_700, 5), (1_500, 200)], ids=["prompt", "with its output"])
def test_a_session_longer_than_the_kv_memory_is_rejected(
    preset: str, sizes: tuple[int, int]
) -> None:
    """The others finish, and the run ends. The second step is the one that is too long."""
    scripts = [
        workflow("before", chat((200, 20), (50, 10), gap=300_000)),
        workflow("long", chat((100, 5), sizes, gap=1_000), chat((40, 300), parent=0)),
        workflow("after", chat((200, 20))),
    ]
    cluster = small_cluster(2, 1_600)
    played = play(preset, plan_of(scripts, [0, 10, 20]), cluster, check=True)
    records = records_of(played)
    assert records["long"].outcome is Outcome.REJECTED
    assert records["long"].tct_us is None
    assert {records["before"].outcome, records["after"].outcome} == {Outcome.FINISHED}
    assert all(engine.num_jobs == 0 for engine in played.simulation.engines.values())


def test_a_refusal_says_what_does_not_fit() -> None:
    played = play(
        AFFINITY, plan_of([workflow("w", chat((1_700, 1)))], [0]), small_cluster(2, 1_600)
    )
    (reject,) = (a for _, actions in played.log for a in actions if isinstance(a, Reject))
    assert reject.reason == "prompt of 1700 tokens does not fit the KV capacity of 1600"
    assert reject.retry_after_us is None


def test_rejecting_one_session_ends_its_siblings() -> None:
    """The child decodes when the root's second request turns out to be too long."""
    root = chat((100, 1), (2_000, 1), gap=10_000)
    child = chat((40, 1_000), parent=0, blocking=False)
    cluster = small_cluster(1, 1_600)
    played = by_hand([workflow("w", root, child)], [0], cluster=cluster)
    assert outcomes_of(played) == {Outcome.REJECTED}
    cancelled = [a.request for _, actions in played.log for a in actions if isinstance(a, Cancel)]
    assert cancelled == ["w/1/0"]


# ---- deadlines


def test_deadlines_are_told() -> None:
    scripts = [workflow(name, chat((40, 1))) for name in "ab"]
    plan = replace(plan_of(scripts, [0, 50_000], deadline_factor=2.5), expected_us=[4_000, 8_000])
    played = play(AFFINITY, plan, small_cluster(1), check=True)
    told = [e.deadline for e, _ in played.log if isinstance(e, WorkflowSubmitted)]
    assert told == [10_000, 70_000]
    played = by_hand(scripts, [0, 50_000])
    assert {e.deadline for e, _ in played.log if isinstance(e, WorkflowSubmitted)} == {None}


@pytest.mark.parametrize("agents", [None, 3])
def test_workflows_that_cannot_make_their_deadline_are_rejected_at_once(
    agents: int | None,
) -> None:
    """All take over 6 s. Those that have 5 s for it are let in until ten have shown that; those
    that have a minute always are."""
    scripts = [workflow(f"w{n:02}", chat(*[(200, 20)] * 4, gap=2 * SECOND)) for n in range(40)]
    arrivals = None if agents else [SECOND * number for number in range(40)]
    hurried, patient = (
        replace(
            plan_of(scripts, arrivals, agents=agents, deadline_factor=factor),
            expected_us=[SECOND] * 40,
        )
        for factor in (5.0, 60.0)
    )
    played = play("saga", hurried, small_cluster(2), check=True)
    outcomes = Counter(each.outcome for each in played.record.workflows)
    assert set(outcomes) == {Outcome.FINISHED, Outcome.REJECTED}
    assert 10 <= outcomes[Outcome.FINISHED] < 25
    rejects = [a for _, actions in played.log for a in actions if isinstance(a, Reject)]
    assert len(rejects) == outcomes[Outcome.REJECTED]
    assert {reject.code for reject in rejects} == {"deadline_unreachable"}
    sent = {a.request for _, actions in played.log for a in actions if isinstance(a, Dispatch)}
    assert not sent & {reject.request for reject in rejects}
    played = play("saga", patient, small_cluster(2), check=True)
    assert outcomes_of(played) == {Outcome.FINISHED}


# ---- clients that leave


def test_a_client_gives_up_when_one_request_takes_too_long() -> None:
    """Two steps of 1,400 us are within 2,000 us each. Of b's 4,000 us of decodes, 600 are left."""
    scripts = [
        workflow("a", chat((40, 1), (40, 1), gap=5_000)),
        workflow("b", chat((40, 5))),
    ]
    played = by_hand(scripts, [0, 50_000], client_timeout_us=2_000)
    records = records_of(played)
    assert records["a"].outcome is Outcome.FINISHED
    assert records["b"].outcome is Outcome.TIMED_OUT
    assert played.simulation.now == 52_000
    assert [a.request for _, actions in played.log for a in actions if isinstance(a, Cancel)] == [
        "b/0/0"
    ]


def test_the_wait_of_a_client_that_left_is_recorded() -> None:
    """a runs from 0 on and is cancelled at 30,000, amid a step that ends at 30,690. b's client has
    left by then, after 30,000 us."""
    cluster = small_cluster(1, 100_000, max_num_seqs=1)
    scripts = [workflow("a", chat((40, 100))), workflow("b", chat((40, 1)))]
    played = by_hand(scripts, [0, 10], cluster=cluster, client_timeout_us=30_000)
    records = records_of(played)
    assert outcomes_of(played) == {Outcome.TIMED_OUT}
    assert records["a"].longest_wait_us == 0
    assert records["b"].longest_wait_us == 30_000


def test_the_wait_for_admission_is_part_of_the_longest_wait() -> None:
    """b does not fit beside a and is let in when a is over, after 42,000 + 9 x 1,010 us; c does not
    fit beside b, and is not let in before b's client leaves, 10 us before its own does."""
    scripts = [
        workflow("a", chat((4_000, 10))),
        workflow("b", chat((5_000, 900))),
        workflow("c", chat((4_500, 1))),
    ]
    cluster = small_cluster(1, 6_000)
    played = by_hand(
        scripts, [0, 10, 20], preset="saga", cluster=cluster, client_timeout_us=400_000
    )
    sent = {
        action.request.partition("/")[0]: event.at
        for event, actions in played.log
        for action in actions
        if isinstance(action, Dispatch)
    }
    assert sent == {"a": 0, "b": 51_090, "c": 400_010}
    records = records_of(played)
    assert records["a"].longest_wait_us == 0
    assert records["b"].longest_wait_us == 51_090 - 10
    assert (records["c"].outcome, records["c"].longest_wait_us) == (Outcome.TIMED_OUT, 400_000)


def test_the_wait_of_a_request_that_the_run_leaves_behind_is_recorded() -> None:
    """b waits from 10 on for a's engine, which is lost at 20,000 and was the last."""
    cluster = small_cluster(1, 100_000, max_num_seqs=1)
    scripts = [workflow("a", chat((40, 100))), workflow("b", chat((40, 1)))]
    loss = EngineLoss(engine=0, at=20_000)
    played = by_hand(scripts, [0, 10], cluster=cluster, losses=[loss])
    assert outcomes_of(played) == {Outcome.UNFINISHED}
    assert records_of(played)["b"].longest_wait_us == played.simulation.now - 10 > 19_000


def test_who_gets_exactly_its_share_finishes_as_in_a_slice_of_its_own() -> None:
    """An engine of a third of the speed is a third of an engine, all the time."""
    cluster = small_cluster(1, 100_000)
    script = workflow("a", chat((40, 30), (500, 7), (90, 12), gap=40_000))
    whole = plain_time(cluster, step_us=1_000, token_us=10)
    third = plain_time(cluster, step_us=3_000, token_us=30)
    plan = plan_of([script], [0], share_us=[whole.alone_us(script, 1 / 3)])
    record = play(AFFINITY, plan, cluster, step_time=third).record.workflows[0]
    assert finish_time_fairness(record) == pytest.approx(1, abs=1e-5)
    assert record.share_us > whole.alone_us(script) + 2 * 40_000


def test_a_client_that_leaves_makes_room() -> None:
    cluster = small_cluster(1, 100_000, max_num_seqs=1)
    scripts = [workflow("a", chat((40, 100))), workflow("b", chat((40, 1)))]
    played = by_hand(scripts, [0, 9_000], cluster=cluster, client_timeout_us=10_000)
    assert records_of(played)["b"].outcome is Outcome.FINISHED
    started = {e.request: e.at for e, _ in played.log if isinstance(e, RequestStarted)}
    assert started["b/0/0"] == 10_490, "the end of the step in which a was cancelled"


# ---- engines that are lost


def crowded(losses: list[EngineLoss], **options: Any) -> Plan:
    return plan_of(random_scripts(5, 30), random_arrivals(5, 30, 1.5), losses=losses, **options)


@pytest.mark.parametrize("preset", ["vllm", AFFINITY, "saga_paper", "saga", "oracle"])
def test_every_workflow_ends_although_an_engine_is_lost(preset: str) -> None:
    losses = [EngineLoss(engine=0, at=9 * SECOND)]
    played = play(preset, crowded(losses), small_cluster(2, 8_000), check=True)
    assert outcomes_of(played) == {Outcome.FINISHED}
    ((down, again),) = ((e, actions) for e, actions in played.log if isinstance(e, EngineDown))
    assert again, "its requests were sent elsewhere at once"
    late = [a for e, actions in played.log if e.at > down.at for a in actions]
    assert {a.engine for a in late if isinstance(a, Dispatch)} == {"engine-01"}


@pytest.mark.parametrize("preset", ["vllm", AFFINITY, "saga_paper", "saga", "oracle"])
def test_every_workflow_ends_although_all_engines_are_lost_for_a_while(preset: str) -> None:
    losses = [
        EngineLoss(engine=0, at=9 * SECOND),
        EngineLoss(engine=1, at=10 * SECOND, back=30 * SECOND),
    ]
    played = play(preset, crowded(losses), small_cluster(2, 8_000), check=True)
    assert outcomes_of(played) == {Outcome.FINISHED}
    dispatched = [e.at for e, actions in played.log for a in actions if isinstance(a, Dispatch)]
    assert not [at for at in dispatched if 10 * SECOND < at < 30 * SECOND]
    assert max(dispatched) > 30 * SECOND


@pytest.mark.parametrize("preset", ["vllm", AFFINITY, "saga_paper", "saga", "oracle"])
def test_a_run_whose_engines_are_all_lost_for_good_ends(preset: str) -> None:
    """What had not finished stays unfinished, and so does what is submitted afterwards."""
    losses = [EngineLoss(engine=0, at=9 * SECOND), EngineLoss(engine=1, at=10 * SECOND)]
    played = play(preset, crowded(losses), small_cluster(2, 8_000), check=True)
    assert outcomes_of(played) == {Outcome.FINISHED, Outcome.UNFINISHED}
    assert len(played.record.workflows) == 30


def test_clients_lose_patience_with_a_cluster_that_is_gone() -> None:
    losses = [EngineLoss(engine=0, at=9 * SECOND), EngineLoss(engine=1, at=10 * SECOND)]
    plan = crowded(losses, client_timeout_us=20 * SECOND)
    played = play("saga", plan, small_cluster(2, 8_000), check=True)
    assert outcomes_of(played) == {Outcome.FINISHED, Outcome.TIMED_OUT}


def first_home(scripts: list[WorkflowScript], cluster: ClusterSpec) -> int:
    """Where the first request goes."""
    log = by_hand(scripts, [0], cluster=cluster).log
    return next(int(a.engine[-1]) for _, acts in log for a in acts if isinstance(a, Dispatch))


def test_the_tokens_of_a_lost_engine_are_counted_once() -> None:
    """The request runs on the first engine until 10,000 us, when it has computed 40 + 8 tokens (the
    ninth decode is under way), and starts over on the other: 40 tokens of prompt are computed
    twice, of 48 lost."""
    scripts = [workflow("w", chat((40, 30)))]
    cluster = small_cluster(2, 100_000)
    loss = EngineLoss(engine=first_home(scripts, cluster), at=10_000)
    played = by_hand(scripts, [0], cluster=cluster, losses=[loss])
    (each,) = played.record.workflows
    assert each.tct_us == 10_000 + 1_400 + 29 * 1_010
    assert (each.queue_us, each.prefill_us) == (0, 1_400)
    assert each.decode_us == each.tct_us - 1_400
    tokens = sum((engine.counts for engine in played.simulation.engines.values()), Counts()).tokens
    assert (tokens.prompt, tokens.output) == (0, 30), "the prompt was counted where it began"
    assert tokens.preempted == 48


def test_kv_on_a_lost_engine_is_regenerated_elsewhere() -> None:
    script = workflow("w", chat((100, 13), (20, 1), gap=SECOND))
    cluster = small_cluster(2, 100_000)
    home = first_home([script], cluster)
    loss = EngineLoss(engine=home, at=500_000, back=600_000)
    played = by_hand([script], [0], cluster=cluster, losses=[loss])
    tokens = sum((engine.counts for engine in played.simulation.engines.values()), Counts()).tokens
    assert (tokens.regenerated, tokens.hit) == (112, 0)


def test_an_engine_lost_while_kv_moves_to_it() -> None:
    """Back at once, empty: the move's target is gone, and the request is sent again."""
    plan = crowded([])
    moving = play("saga+admission=null", plan, small_cluster(3, 6_000, max_num_seqs=4))
    at, target = next(
        (e.at, a.target) for e, actions in moving.log for a in actions if isinstance(a, Move)
    )
    for back in (1, 5_000, 10 * SECOND):
        loss = EngineLoss(engine=int(target[-1]), at=at + 100, back=at + 100 + back)
        played = play(
            "saga+admission=null",
            crowded([loss]),
            small_cluster(3, 6_000, max_num_seqs=4),
            check=True,
        )
        assert outcomes_of(played) == {Outcome.FINISHED}


# ---- moves


def test_nothing_is_moved_to_engines_that_cannot_take_it() -> None:
    """Nor is it believed to be: then sessions would leave home for too little."""

    def closed(setup: EngineSetup) -> SimEngine:
        engine = light_engine(setup)
        engine.adopts = False
        return engine

    cluster, preset = small_cluster(3, 6_000, max_num_seqs=4), "saga+admission=null"
    assert play(preset, crowded([]), cluster).simulation.num_moves > 0
    played = play(preset, crowded([]), cluster, make_engine=closed)
    assert not any(isinstance(a, Move) for _, actions in played.log for a in actions)
    assert outcomes_of(played) == {Outcome.FINISHED}


def test_a_moved_sessions_kv_takes_its_time_and_its_request_waits_for_it() -> None:
    """In a crowded run: from every move to the start of its request at least the transfer passes,
    20 ms and 327,680 bytes a token at 22 GB/s, for as much as is hit there."""
    played = play("saga+admission=null", crowded([]), small_cluster(3, 6_000, max_num_seqs=4))
    log, checked = played.log, 0
    for index, (event, actions) in enumerate(log):
        for move in (a for a in actions if isinstance(a, Move)):
            for later, _ in log[index:]:
                if isinstance(later, RequestStarted) and later.request.startswith(
                    f"{move.session}/"
                ):
                    least = 20_000 + later.cached_tokens * 327_680 / 22_000
                    assert later.at - event.at >= least
                    checked += later.cached_tokens > 0
                    break
    assert checked > 3


def test_the_scheduler_may_preempt_what_runs() -> None:
    played = play("saga_paper", crowded([]), small_cluster(1, 6_000, max_num_seqs=4), check=True)
    preempted = {a.request for _, actions in played.log for a in actions if isinstance(a, Preempt)}
    started = [e.request for e, _ in played.log if isinstance(e, RequestStarted)]
    assert preempted
    assert any(started.count(request) > 1 for request in preempted)


def test_a_lost_engine_is_charged_for_the_time_it_was_up() -> None:
    plan = plan_of(
        [workflow(f"w{number}", chat((500, 50), (100, 50), gap=SECOND)) for number in range(20)],
        [number * SECOND // 2 for number in range(20)],
        losses=[EngineLoss(engine=0, at=3 * SECOND, back=5 * SECOND)],
    )
    record = play("vllm", plan, small_cluster(1)).record
    first, second = record.engines
    assert first.window_us == 3 * SECOND
    assert second.window_us == record.end_us - 5 * SECOND
    assert first.busy_us > 0 < second.busy_us


def test_what_a_prefetch_prepared_is_told_to_the_scheduler() -> None:
    plan = plan_of(
        random_scripts(3, 40), random_arrivals(3, 40, 2.0), declared_steps={"agent": 3.0}
    )
    played = play("saga_paper", plan, small_cluster(2, 6_000, max_num_seqs=8))
    events = [event for event, _ in played.log]
    stored = [event for event in events if isinstance(event, BlocksStored)]
    assert stored
    prefetches = [a for _, actions in played.log for a in actions if isinstance(a, Prefetch)]
    assert {(event.engine, event.session) for event in stored} <= {
        (prefetch.engine, prefetch.session) for prefetch in prefetches
    }
    contexts = {
        f"{script.id}/{index}": {step.prompt_tokens + step.output_tokens for step in session.steps}
        for script in plan.scripts
        for index, session in enumerate(script.sessions)
    }
    assert all(event.num_tokens in contexts[event.session] for event in stored)
