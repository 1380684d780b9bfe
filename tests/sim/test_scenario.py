"""One small run worked out on paper: every event, every action, every microsecond.

Two engines of 20 blocks (320 tokens), one request in a batch, 100 tokens a step; a step of n new
tokens lasts 1,000 + 10 n us. Sessions stay on the engine that knows them, a new one goes where
fewer sessions live (ties: crc32 of the request's id, even for the first engine); the scheduler
sends one request at a time. vLLM's prefix LRU; KV of a session that has ended is released.

ann (0 us)      150 tokens, 3 out; 20,000 us in a tool; 20 more tokens (prompt 173), 2 out.
bob (1,000 us)  100 tokens, 3 out; 1,500 us in a tool; 10 more tokens (prompt 113), 1 out.
eve (2,000 us)  290 tokens, 21 out.

Engine 0: ann's 150 tokens are prefilled 0-2,000 (100) and -3,500 (50); two decodes until 5,520. Her
  152 computed tokens leave 9 whole blocks. She is back at 25,520.
  eve waits from 2,000 to 5,520. Chunks of 100 (-7,520), 100 (-9,520) and 90 (-11,420), in all 19
  blocks; the first 7 come from the 11 free ones, the next 6 cost ann 2, the last 6 cost ann 6 of
  her 9 blocks: one is left. 14 decodes later, at 25,560, eve's 304 tokens fill her 19 blocks, and
  the twentieth is ann's last. 20 decodes end at 31,620.
  ann has waited since 25,520. Nothing of her 173 tokens is left, and 144 of them (9 blocks) were
  there before. 100 (-33,620) and 73 (-35,350), one decode until 36,360.
Engine 1: bob's 100 tokens 1,000-3,000, two decodes until 5,020: 102 computed, 6 whole blocks. Back
  at 6,520 he hits 96 tokens and computes 17 in 1,170 us: first and only token at 7,690.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.factory import chat, plain_time, plan_of, small_cluster, workflow

from saga.core import actions as act
from saga.core import events as ev
from saga.core.policy import ClusterView, Hold, Policies, SessionView
from saga.policies.fcfs import Fcfs
from saga.policies.prefix_lru import PrefixLru
from saga.policies.session_affinity import SessionAffinity
from saga.report.records import Outcome, WorkflowRecord
from saga.sim.counts import Counts
from saga.sim.host import Simulation


@dataclass(frozen=True, slots=True)
class FreeFinished:
    """Holds nothing, releases what nobody will ask for again."""

    release_finished: bool = True
    protect_queued: bool = False

    def hold(self, session: SessionView, cluster: ClusterView) -> Hold | None:
        return None


STORY = """
0 EngineUp engine-00
0 EngineUp engine-01
0 WorkflowSubmitted ann
0 SessionOpened ann/0
0 RequestArrived ann/0/0 -> Dispatch ann/0/0 engine-00 (new session)
0 RequestStarted ann/0/0 cached=0
1000 WorkflowSubmitted bob
1000 SessionOpened bob/0
1000 RequestArrived bob/0/0 -> Dispatch bob/0/0 engine-01 (new session)
1000 RequestStarted bob/0/0 cached=0
2000 WorkflowSubmitted eve
2000 SessionOpened eve/0
2000 RequestArrived eve/0/0
3000 RequestFirstToken bob/0/0
3500 RequestFirstToken ann/0/0
5020 RequestFinished bob/0/0 cached=0
5520 RequestFinished ann/0/0 cached=0 -> Dispatch eve/0/0 engine-00 (new session)
5520 RequestStarted eve/0/0 cached=0
6520 RequestArrived bob/0/1 -> Dispatch bob/0/1 engine-01 (affinity)
6520 RequestStarted bob/0/1 cached=96
7690 RequestFirstToken bob/0/1
7690 RequestFinished bob/0/1 cached=96
7690 SessionClosed bob/0 -> Release bob/0 engine-01 (its session ended)
7690 WorkflowDone bob
11420 RequestFirstToken eve/0/0
25520 RequestArrived ann/0/1
25560 BlocksRemoved ann/0 left=0
31620 RequestFinished eve/0/0 cached=0 -> Dispatch ann/0/1 engine-00 (affinity)
31620 SessionClosed eve/0 -> Release eve/0 engine-00 (its session ended)
31620 WorkflowDone eve
31620 RequestStarted ann/0/1 cached=0
35350 RequestFirstToken ann/0/1
36360 RequestFinished ann/0/1 cached=0
36360 SessionClosed ann/0 -> Release ann/0 engine-00 (its session ended)
36360 WorkflowDone ann
"""


def told(event: ev.Event) -> str:
    """An event in one line."""
    match event:
        case ev.RequestStarted() | ev.RequestFinished():
            what = f"{event.request} cached={event.cached_tokens}"
        case ev.RequestArrived() | ev.RequestFirstToken():
            what = event.request
        case ev.BlocksRemoved():
            what = f"{event.session} left={event.num_tokens}"
        case ev.SessionOpened() | ev.SessionClosed():
            what = event.session
        case ev.WorkflowSubmitted() | ev.WorkflowDone():
            what = event.workflow
        case ev.EngineUp():
            what = event.engine
        case _:
            what = "?"
    return f"{event.at} {type(event).__name__} {what}"


def done(action: act.Action) -> str:
    match action:
        case act.Dispatch():
            what = f"{action.request} {action.engine}"
        case act.Release():
            what = f"{action.session} {action.engine}"
        case _:
            what = "?"
    return f" -> {type(action).__name__} {what} ({action.reason})"


def played() -> tuple[Simulation, list[str], dict[str, WorkflowRecord]]:
    cluster = small_cluster(2, 320, max_num_seqs=1, max_num_batched_tokens=100)
    scripts = [
        workflow("ann", chat((150, 3), (20, 2), gap=20_000)),
        workflow("bob", chat((100, 3), (10, 1), gap=1_500)),
        workflow("eve", chat((290, 21))),
    ]
    policies = Policies(
        routing=SessionAffinity(),
        ordering=Fcfs(),
        eviction=PrefixLru(),
        retention=FreeFinished(),
        max_waiting_per_engine=1,
    )
    lines: list[str] = []
    simulation = Simulation(
        plan_of(scripts, [0, 1_000, 2_000]),
        policies,
        cluster,
        step_time=plain_time(cluster, step_us=1_000, token_us=10),
        check=True,
        observe=lambda event, actions: lines.append(told(event) + "".join(map(done, actions))),
    )
    record = simulation.run()
    return simulation, lines, {each.id: each for each in record.workflows}


def test_every_event_and_action_is_as_worked_out() -> None:
    _, lines, _ = played()
    assert lines == STORY.strip().splitlines()


def test_the_records_are_as_worked_out() -> None:
    """Of ann's second prefill, 3,730 us, 144 of 173 tokens were regenerated: 3,105 us."""
    _, _, records = played()
    parts = {
        name: (r.queue_us, r.prefill_us, r.regenerated_us, r.decode_us, r.tool_us, r.subagents_us)
        for name, r in records.items()
    }
    assert parts == {
        "ann": (6_100, 3_500 + 625, 3_105, 2_020 + 1_010, 20_000, 0),
        "bob": (0, 2_000 + 1_170, 0, 2_020, 1_500, 0),
        "eve": (3_520, 5_900, 0, 20_200, 0, 0),
    }
    assert {name: r.tct_us for name, r in records.items()} == {
        "ann": 36_360,
        "bob": 6_690,
        "eve": 29_620,
    }
    assert {name: r.longest_wait_us for name, r in records.items()} == {
        "ann": 6_100,
        "bob": 0,
        "eve": 3_520,
    }
    assert {r.outcome for r in records.values()} == {Outcome.FINISHED}


def test_the_counts_are_as_worked_out() -> None:
    """Engine 0 was busy 5,520 + 26,100 + 4,740 us; its evictions: ann's 9 blocks for eve, then 10
    of the 19 whole ones that eve left, one block being free, for ann."""
    simulation, _, _ = played()
    counts = sum((engine.counts for engine in simulation.engines.values()), Counts())
    tokens = counts.tokens
    assert (tokens.prompt, tokens.hit, tokens.host_hit) == (150 + 173 + 100 + 113 + 290, 96, 0)
    assert (tokens.regenerated, tokens.new) == (144, 150 + 29 + 100 + 17 + 290)
    assert (tokens.output, tokens.preempted, tokens.prefetched) == (3 + 2 + 3 + 1 + 21, 0, 0)
    assert counts.busy_ps == (5_520 + 26_100 + 4_740 + 4_020 + 1_170) * 1_000_000
    assert counts.num_preemptions == 0
    assert counts.evicted_blocks == 9 + 10
    assert counts.num_evictions == 1
    # positions 0 to 144 in steps of 100 and 44 tokens
    assert counts.regenerated_ps == (2_000 + 1_440) * 1_000_000
