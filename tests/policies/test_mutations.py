"""Every important policy is wired through: with a mutant in its place the same workload runs
otherwise. Tests of the policies alone could not see one that nobody asks."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from random import Random

import pytest
from tests.sim.factory import (
    SECOND,
    Played,
    plan_of,
    play,
    random_arrivals,
    small_cluster,
    step,
    workflow,
)

from saga.core.actions import Dispatch
from saga.core.events import BlocksRemoved, RequestArrived, RequestFinished
from saga.traces.script import SessionScript, WorkflowScript

NUM_WORKFLOWS = 40
SEEDS = (1, 2)
TOOLS_S = {"read": 0.3, "edit": 3.0, "test": 12.0}
KINDS = {"short": (2, 3), "long": (6, 16)}
"""Agent types and their numbers of steps: reuse is likelier for one than for the other."""


def agent(random: Random, name: str) -> WorkflowScript:
    kind = random.choice(list(KINDS))
    num_steps = random.randint(*KINDS[kind])
    steps, context = [], 0
    for number in range(num_steps):
        new = random.randint(50, 400) if number else random.randint(800, 1_500)
        output, last = random.randint(10, 60), number == num_steps - 1
        tool = None if last else random.choice(list(TOOLS_S))
        gap = 0 if tool is None else int(random.expovariate(1 / TOOLS_S[tool]) * SECOND)
        steps.append(step(context, new, output, tool=tool, gap=gap))
        context += new + output
    session = SessionScript(steps=tuple(steps))
    tenant = random.choice(["large", "large", "large", "small"])
    return workflow(name, session, tenant=tenant, agent_type=kind)


@dataclass(frozen=True)
class Runs:
    """What can be seen from outside of the runs of all seeds."""

    dispatches: tuple[tuple[str, str], ...]
    """Request and engine, in order."""
    computed_tokens: int
    """Prompt tokens that were not cached."""
    evictions: int
    steals: int
    tct_us: int
    """Summed up over the workflows."""
    actions: Counter[str]
    """By their names."""


@cache
def run(preset: str) -> Runs:
    """Forty agents on three engines with two seats each and memory for two or three agents."""
    played = [play_seed(preset, seed) for seed in SEEDS]
    actions = [action for one in played for _, actions in one.log for action in actions]
    events = [event for one in played for event, _ in one.log]
    ends = [event for event in events if isinstance(event, RequestFinished)]
    records = [record for one in played for record in one.record.workflows]
    assert len(ends) == sum(record.num_steps for record in records)
    prompts = sum(event.prompt_tokens for event in events if isinstance(event, RequestArrived))
    return Runs(
        dispatches=tuple((a.request, a.engine) for a in actions if isinstance(a, Dispatch)),
        computed_tokens=prompts - sum(end.cached_tokens or 0 for end in ends),
        evictions=sum(isinstance(event, BlocksRemoved) for event in events),
        steals=sum(one.record.num_steals for one in played),
        tct_us=sum(record.tct_us or 0 for record in records),
        actions=Counter(type(action).__name__ for action in actions),
    )


def play_seed(preset: str, seed: int) -> Played:
    random = Random(seed)
    scripts = [agent(random, f"w{number:02d}") for number in range(NUM_WORKFLOWS)]
    plan = plan_of(
        scripts,
        random_arrivals(seed, NUM_WORKFLOWS, 1.5),
        declared_steps={"short": 2.5, "long": 11.0},
    )
    return play(preset, plan, small_cluster(3, 8_000, max_num_seqs=2))


def mutant(question: str, name: str) -> str:
    return f"{question}=tests.policies.mutants:{name}"


PAPER = "saga_paper"
OURS = "saga+admission.kappa=1.5+admission.absent_floor_s=30"


@pytest.mark.parametrize(
    ("preset", "change", "seen"),
    [
        (PAPER, mutant("eviction", "EqualRanks"), {"computed_tokens", "evictions"}),
        (PAPER, "eviction.alpha=0", {"computed_tokens", "evictions"}),
        (PAPER, "eviction.beta=0", {"computed_tokens", "evictions"}),
        (PAPER, "eviction.gamma=0", {"computed_tokens", "evictions"}),
        (PAPER, mutant("retention", "NeverHolds"), {"computed_tokens", "evictions"}),
        (PAPER, "retention.max_ttl_s=0.001", {"computed_tokens", "tct_us"}),
        (PAPER, mutant("routing", "ForgetsKv"), {"dispatches", "computed_tokens"}),
        (PAPER, "routing.theta=0.3", {"dispatches", "computed_tokens"}),
        (PAPER, mutant("fairness", "EqualShares"), {"dispatches", "tct_us"}),
        (PAPER, mutant("fairness", "NeverPreempts"), {"dispatches", "tct_us"}),
        (PAPER, mutant("ordering", "EqualKeys"), {"dispatches", "tct_us"}),
        (PAPER, mutant("stealing", "NeverSteals"), {"dispatches", "steals", "tct_us"}),
        (PAPER, mutant("prefetch", "NeverPrefetches"), {"evictions", "tct_us"}),
        (OURS, mutant("admission", "AlwaysAdmits"), {"dispatches", "evictions", "tct_us"}),
        (OURS, "admission.kappa=1.0", {"dispatches", "evictions", "tct_us"}),
        (OURS, "admission.absent_floor_s=0", {"dispatches", "evictions", "tct_us"}),
        (OURS, "retention.protect_queued=false", {"computed_tokens", "actions"}),
        (OURS, "retention.release_finished=false", {"computed_tokens", "actions"}),
        (OURS, "routing.move_kv=false", {"computed_tokens", "actions"}),
    ],
)
def test_a_mutant_is_seen(preset: str, change: str, seen: set[str]) -> None:
    sound, mutated = run(preset), run(f"{preset}+{change}")
    same = {name for name in seen if getattr(sound, name) == getattr(mutated, name)}
    assert same == set()


def test_a_run_without_a_mutant_is_the_same() -> None:
    """Otherwise the test above would pass for nothing."""
    before = run(PAPER)
    run.cache_clear()
    assert run(PAPER) == before


def test_who_forgets_where_the_kv_is_computes_more() -> None:
    assert run(f"{PAPER}+{mutant('routing', 'ForgetsKv')}").computed_tokens > (
        1.05 * run(PAPER).computed_tokens
    )


def test_who_admits_everybody_evicts_and_computes_more() -> None:
    sound, mutated = run(OURS), run(f"{OURS}+{mutant('admission', 'AlwaysAdmits')}")
    assert mutated.evictions > 1.2 * sound.evictions
    assert mutated.computed_tokens > 1.05 * sound.computed_tokens


def test_who_never_does_a_thing_never_does_it() -> None:
    for question, name, action in (
        ("retention", "NeverHolds", "Retain"),
        ("fairness", "NeverPreempts", "Preempt"),
        ("prefetch", "NeverPrefetches", "Prefetch"),
    ):
        assert run(PAPER).actions[action] > 0
        assert run(f"{PAPER}+{mutant(question, name)}").actions[action] == 0
    assert run(PAPER).steals > 0 == run(f"{PAPER}+{mutant('stealing', 'NeverSteals')}").steals
    assert run(OURS).actions["Release"] > 0
    assert run(f"{OURS}+retention.release_finished=false").actions["Release"] == 0
    assert run(OURS).actions["Move"] > run(f"{OURS}+routing.move_kv=false").actions["Move"]
