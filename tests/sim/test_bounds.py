"""The offline optimum against a linear programme, and every policy against the optimum."""

from dataclasses import dataclass, replace
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from tests.sim.factory import SECOND, chat, plan_of, random_arrivals, random_scripts, small_cluster
from tests.sim.factory import workflow as script_of

from saga.config import known_policies, load_preset
from saga.core.cache import FOREVER
from saga.sim.bounds import (
    POOL_FRACTIONS,
    Step,
    Timeline,
    optimal_regenerated,
    ratios_to_optimum,
    record_timeline,
    regenerated_share,
)

EVICTIONS = [info.name for info in known_policies().values() if info.kind == "eviction"]


@dataclass(frozen=True)
class Gap:
    begin: int
    end: int
    tokens: int


def step_of(gap: Gap, number: int = 0) -> Step:
    """A step that ends in the gap."""
    return Step(
        session=f"s{number}",
        workflow=f"w{number}",
        tenant="tenant",
        agent_type="agent",
        engine="engine",
        arrived=gap.begin - 1,
        started=gap.begin - 1,
        finished=gap.begin,
        prompt_tokens=gap.tokens + 1,
        output_tokens=1,
        tool="shell",
        last=False,
        kept_tokens=gap.tokens,
        next_start=gap.end,
    )


def optimum(gaps: list[Gap], pool: int) -> int:
    return optimal_regenerated([step_of(gap, number) for number, gap in enumerate(gaps)], pool)


# ---- the optimum


def test_nothing_is_lost_while_everything_fits() -> None:
    gaps = [Gap(0, 10, 60), Gap(5, 15, 40), Gap(10, 20, 60)]  # the third begins as the first ends
    assert optimum(gaps, 100) == 0
    assert optimum(gaps, 99) == 1
    assert optimum(gaps, 0) == 160


def test_the_gap_that_ends_last_is_cut() -> None:
    """50 of the long gap are cut for the first short one, and need not be for the second."""
    long, first, second = Gap(0, 100, 80), Gap(10, 20, 70), Gap(30, 40, 60)
    assert optimum([long, first], 100) == 50
    assert optimum([long, first, second], 100) == 50


def test_what_does_not_fit_at_all_is_cut_itself() -> None:
    assert optimum([Gap(0, 10, 130)], 100) == 30


def test_a_gap_of_no_length_takes_no_memory() -> None:
    assert optimum([Gap(0, 50, 90), Gap(10, 10, 500)], 100) == 0


GAPS = st.lists(
    st.builds(
        lambda begin, length, tokens: Gap(begin, begin + length, tokens),
        st.integers(0, 20),
        st.integers(0, 12),
        st.integers(1, 30),
    ),
    max_size=12,
)


def by_linear_programme(gaps: list[Gap], pool: int) -> float:
    """Tokens lost where ``sum of kept <= pool`` at the beginning of every gap."""
    if not gaps:
        return 0.0
    covers = np.array([[g.begin <= at.begin < g.end for g in gaps] for at in gaps], dtype=float)
    solved = linprog(
        c=[-1.0] * len(gaps),
        A_ub=covers,
        b_ub=[float(pool)] * len(gaps),
        bounds=[(0, gap.tokens) for gap in gaps],
        method="highs",
    )
    return float(sum(gap.tokens for gap in gaps) + solved.fun)


@settings(max_examples=100)
@given(GAPS, st.integers(0, 60))
def test_law_the_greedy_optimum_is_that_of_the_linear_programme(gaps: list[Gap], pool: int) -> None:
    assert optimum(gaps, pool) == pytest.approx(by_linear_programme(gaps, pool), abs=1e-6)


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 2, st.integers(0, 3)), max_size=5), st.data())
def test_law_no_choice_of_whole_tokens_loses_less(
    shapes: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    gaps = [Gap(begin, begin + length, tokens) for begin, length, tokens in shapes]
    pool = data.draw(st.integers(0, 8))

    def fits(kept: tuple[int, ...]) -> bool:
        held = [
            sum(k for k, g in zip(kept, gaps, strict=True) if g.begin <= at.begin < g.end)
            for at in gaps
        ]
        return all(tokens <= pool for tokens in held)

    choices = product(*(range(gap.tokens + 1) for gap in gaps))
    most = max(sum(kept) for kept in choices if fits(kept))
    assert optimum(gaps, pool) == sum(gap.tokens for gap in gaps) - most


@given(GAPS, st.integers(0, 60), st.integers(0, 60))
def test_law_more_memory_never_loses_more(gaps: list[Gap], one: int, two: int) -> None:
    less, more = sorted((one, two))
    assert 0 <= optimum(gaps, more) <= optimum(gaps, less) <= sum(gap.tokens for gap in gaps)


# ---- policies on a frozen timeline


def random_timeline(seed: int, *, grid: int = 1) -> Timeline:
    """Sessions of one engine; times are multiples of ``grid``, so that many fall together."""
    random, steps = Random(seed), []
    for number in range(random.randint(1, 25)):
        now, context, num_steps = random.randrange(0, 2_000, grid), 0, random.randint(1, 6)
        kind = random.choice(["short", "long"])
        for index in range(num_steps):
            started, last = now, index == num_steps - 1
            prompt = context + random.randint(1, 60)
            finished = started + random.randrange(grid, 100 + grid, grid)
            now = finished + random.randrange(0 if random.random() < 0.1 else grid, 1_500, grid)
            context = prompt + random.randint(1, 20)
            steps.append(
                Step(
                    session=f"s{number}",
                    workflow=f"w{number}",
                    tenant=random.choice(["one", "two"]),
                    agent_type=kind,
                    engine="engine",
                    arrived=started,
                    started=started,
                    finished=finished,
                    prompt_tokens=prompt,
                    output_tokens=context - prompt,
                    tool=None if last else random.choice(["read", "edit", "test"]),
                    last=last,
                    kept_tokens=0 if last else context - 1,
                    next_start=FOREVER if last else now,
                )
            )
    steps.sort(key=lambda step: step.finished)
    return Timeline({"engine": steps}, {"short": 2.0})


TIMELINES = st.builds(random_timeline, st.integers(0, 10_000), grid=st.sampled_from([1, 50]))
FRACTIONS = (0.05, 0.3, 0.7, 1.2)


def ratios(timeline: Timeline, preset: str) -> list[float]:
    """By pool size; where the optimum loses nothing worth a ratio, 1."""
    found = ratios_to_optimum([timeline], load_preset(preset).policies, FRACTIONS)
    assert list(found) == list(FRACTIONS)
    return [1.0 if ratio is None else ratio for ratio in found.values()]


@settings(max_examples=25)
@given(TIMELINES)
def test_law_belady_is_the_optimum(timeline: Timeline) -> None:
    assert ratios(timeline, "oracle") == [1.0] * 4
    assert ratios(timeline, "vllm+eviction=belady") == [1.0] * 4


@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("base", ["vllm", "saga_paper", "saga"])
@settings(max_examples=8)
@given(timeline=TIMELINES)
def test_law_no_policy_beats_the_optimum(base: str, eviction: str, timeline: Timeline) -> None:
    assert min(ratios(timeline, f"{base}+eviction={eviction}")) >= 1.0


@settings(max_examples=25)
@given(TIMELINES)
def test_wa_lru_by_recency_alone_is_prefix_lru(timeline: Timeline) -> None:
    recency = "eviction=wa_lru+eviction.alpha=1+eviction.beta=0+eviction.gamma=0"
    assert ratios(timeline, f"vllm+{recency}") == ratios(timeline, "vllm+eviction=prefix_lru")


@settings(max_examples=25)
@given(TIMELINES)
def test_lru_frees_dead_sessions_no_later_if_it_is_told_of_them(timeline: Timeline) -> None:
    told = "vllm+retention=reuse_score+retention.release_finished=true"
    for with_it, without in zip(ratios(timeline, told), ratios(timeline, "vllm"), strict=True):
        assert with_it <= without + 1e-12


# ---- by hand


HAND = Timeline(
    {
        "engine": [
            step_of(Gap(10, 110, 80), 0),
            step_of(Gap(20, 30, 70), 1),
            replace(step_of(Gap(50, FOREVER, 0), 1), started=30, last=True),
            replace(step_of(Gap(130, FOREVER, 0), 0), started=110, last=True),
        ]
    },
    {},
)
"""80 tokens idle for 100 us and 70 for 10 us, in 120 us."""


def test_mean_idle_tokens() -> None:
    assert HAND.mean_idle_tokens("engine") == pytest.approx((80 * 100 + 70 * 10) / 120)


def test_a_share_of_what_is_reused() -> None:
    (share,) = regenerated_share([HAND], [100 / 72.5]).values()  # a pool of 100 tokens
    assert share == pytest.approx(50 / 150)


def test_ratios_of_a_hundred_tokens() -> None:
    """The optimum cuts 50 of the longer gap; so do LRU and Belady, and whole LRU drops all 80."""
    fraction = 100 / 72.5
    for eviction, expected in (("belady", 1.0), ("prefix_lru", 1.0), ("lru", 80 / 50)):
        bundle = load_preset(f"vllm+eviction={eviction}").policies
        assert ratios_to_optimum([HAND], bundle, [fraction]) == {fraction: pytest.approx(expected)}


def test_no_ratio_to_next_to_nothing() -> None:
    ample = 10.0
    assert ratios_to_optimum([HAND], load_preset("vllm").policies, [ample]) == {ample: None}


def test_timelines_add_up_before_the_ratio_is_taken() -> None:
    """Ratios are of sums; a mean of ratios would be dominated by optima near 0."""
    easy = Timeline({"engine": HAND.steps["engine"][:1] + HAND.steps["engine"][3:]}, {})
    fraction, bundle = 100 / 72.5, load_preset("vllm+eviction=lru").policies
    assert optimal_regenerated(easy.steps["engine"], 92) == 0
    both = ratios_to_optimum([HAND, easy], bundle, [fraction])
    assert both == {fraction: pytest.approx(80 / 50)}


# ---- recording


def test_a_recorded_timeline_has_every_step_as_it_was_played() -> None:
    scripts = random_scripts(4, 12)
    timeline = record_timeline(plan_of(scripts, random_arrivals(4, 12, 1.0)), small_cluster(3))
    steps = [step for steps in timeline.steps.values() for step in steps]
    assert len(steps) == sum(script.num_steps for script in scripts)
    engines: dict[str, set[str]] = {}
    for step in steps:
        assert step.arrived <= step.started < step.finished < step.next_start
        assert step.last is (step.next_start == FOREVER)
        assert 0 <= step.kept_tokens < step.prompt_tokens + step.output_tokens
        engines.setdefault(step.session, set()).add(step.engine)
    assert all(len(homes) == 1 for homes in engines.values())
    for one in timeline.steps.values():
        assert [step.finished for step in one] == sorted(step.finished for step in one)


def test_what_is_kept_is_the_sessions_own_in_whole_blocks() -> None:
    """1,000 + 100 tokens, the last never computed: 1,099, which is 68 blocks of 16."""
    own = chat((1_000, 100), (10, 10), gap=SECOND)
    plan = plan_of([script_of("own", own)], [0])
    (steps,) = record_timeline(plan, small_cluster(1)).steps.values()
    assert [step.kept_tokens for step in steps] == [1_088, 0]
    assert steps[0].next_start == steps[1].started >= steps[0].finished + SECOND
    shared = chat((1_000, 100), (10, 10), gap=SECOND, kept=128, prefix="system", prefix_tokens=128)
    plan = plan_of([script_of("shared", shared)], [0])
    (steps,) = record_timeline(plan, small_cluster(1)).steps.values()
    assert [step.kept_tokens for step in steps] == [1_088, 0]


def test_memory_is_ample_whatever_the_cluster_has() -> None:
    scripts = random_scripts(4, 12)
    plan = plan_of(scripts, random_arrivals(4, 12, 1.0))
    one, other = (record_timeline(plan, small_cluster(2, kv)) for kv in (4_000, 400_000))
    assert one == other


def test_pool_fractions_are_those_of_the_protocol() -> None:
    assert POOL_FRACTIONS == (0.3, 0.5, 0.7, 0.9)
