from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.sim.fluid import FluidPoint, Mix, expected_us, operating_point, saturation
from saga.sim.hardware import get_cluster
from saga.sim.latency import StepTime
from saga.traces.script import SessionScript, StepScript, WorkflowScript

STEP_TIME = StepTime.of(get_cluster("paper-64xa100").engine)


def agent(
    num_steps: int, new: int, output: int, gap_s: float, prefix: int = 0, name: str = "tools"
) -> WorkflowScript:
    """A linear agent whose context grows by the same at every step."""
    steps = [
        StepScript(
            kept_tokens=prefix + number * (new + output),
            new_tokens=new,
            output_tokens=output,
            gap_us=int(gap_s * 1e6) if number < num_steps - 1 else 0,
        )
        for number in range(num_steps)
    ]
    session = SessionScript(
        steps=tuple(steps), prefix=name if prefix else None, prefix_tokens=prefix
    )
    return WorkflowScript(id=f"{num_steps}-{new}-{output}", sessions=(session,))


SWE = agent(26, 900, 170, 6.0, prefix=4000)


def test_one_step_by_hand() -> None:
    """A workflow of one call, 1,024 tokens in and 100 out, on an engine with room for six."""
    engine = get_cluster("16xa100-8b", kv_capacity_tokens=6736).engine
    time = StepTime.of(engine)
    mix = Mix.of([agent(1, 1024, 100, 0)], time)
    prefill = time.prefill_ps(0, 1024, 2048)
    decodes = 99 * time.base_ps(1, 1) + time.kv_ps * (99 * 1024 + 99 * 49)
    assert mix.llm_ps == mix.tct_ps == prefill + decodes
    assert mix.prefill_ps == prefill - time.base_ps(1, 1)
    assert mix.context_tokens == 1024 + 49.5
    assert mix.live_tokens == 1024 + 50
    # six of them: every output token waits for the larger step and the others' prefills and reads
    delay = (
        time.base_ps(6, 6)
        - time.base_ps(1, 1)
        + 5 * mix.prefill_ps / 100
        + 5 * time.kv_ps * (1024 + 49.5)
    )
    point = mix.point(6)
    assert point.delay_ps == pytest.approx(delay)
    assert point.tct_s == pytest.approx((prefill + decodes + 100 * delay) / 1e12)
    assert (point.live, point.kv_tokens) == pytest.approx((6, 6 * 1074))
    # 6,736 // 1,074 tokens: the batch of the highest rate is a little above six
    top = saturation(mix)
    assert top.batch == top.live == pytest.approx(6736 / 1074)
    assert top.rate_per_s == pytest.approx(top.batch / top.tct_s)


def test_gaps_hold_memory_but_not_the_engine() -> None:
    busy, idle = (Mix.of([agent(20, 500, 200, gap)], STEP_TIME) for gap in (0.0, 30.0))
    assert idle.llm_ps == busy.llm_ps
    assert idle.tct_ps == busy.tct_ps + 19 * 30e12
    assert idle.gap_us == 19 * 30e6
    assert saturation(idle).batch < saturation(idle).live
    assert saturation(busy).batch == pytest.approx(saturation(busy).live)
    assert saturation(idle).rate_per_s < saturation(busy).rate_per_s


def test_saturation_fills_the_memory() -> None:
    top = saturation(Mix.of([SWE], STEP_TIME))
    assert top.kv_tokens == pytest.approx(STEP_TIME.engine.kv_capacity_tokens)
    assert top.live == pytest.approx(top.rate_per_s * top.tct_s)


def test_without_a_memory_limit_the_batch_is_full() -> None:
    """And the rate approaches what the work of one workflow allows, however many share a step."""
    rates = []
    for most in (1024, 1 << 20):
        engine = get_cluster(
            "paper-64xa100",
            kv_capacity_tokens=10**12,
            max_num_seqs=most,
            max_num_batched_tokens=most,
        ).engine
        mix = Mix.of([SWE], StepTime.of(engine))
        top = saturation(mix)
        assert top.batch == most
        rates.append(top.rate_per_s)
    time = mix.step_time
    token = time.layers_token_ps + time.allreduce_token_ps + time.head_token_ps + 4.4e6
    work = mix.prefill_ps + mix.output_tokens * (token + time.kv_ps * mix.context_tokens)
    assert rates[0] < rates[1] < 1e12 / work
    assert rates[1] == pytest.approx(1e12 / work, rel=0.001)


def test_shared_prefixes_count_once() -> None:
    own = saturation(Mix.of([replace_prefix(SWE, None)], STEP_TIME))
    one = saturation(Mix.of([SWE], STEP_TIME))
    assert own.live < one.live
    two = Mix.of([SWE, replace_prefix(SWE, "other")], STEP_TIME)
    # both prefixes are in use as soon as two workflows live; then they cost twice 4,000 tokens
    assert one.rate_per_s > saturation(two).rate_per_s
    one_less = get_cluster("paper-64xa100", kv_capacity_tokens=450_640 - 4000).engine
    less = saturation(Mix.of([SWE], StepTime.of(one_less)))
    assert saturation(two).rate_per_s == pytest.approx(less.rate_per_s, rel=1e-3)


def replace_prefix(script: WorkflowScript, name: str | None) -> WorkflowScript:
    (session,) = script.sessions
    tokens = session.prefix_tokens if name else 0
    return replace(script, sessions=(replace(session, prefix=name, prefix_tokens=tokens),))


def test_a_prefix_that_one_in_many_uses_is_there_as_often() -> None:
    point = Mix.of([replace_prefix(SWE, str(n)) for n in range(100)], STEP_TIME).point(1.0)
    alone = Mix.of([SWE], STEP_TIME).point(1.0)
    assert point.live == pytest.approx(alone.live)
    assert point.live > 1
    assert point.kv_tokens - alone.kv_tokens == pytest.approx(4000 * (point.live - 1))


def test_sub_agents_add_work_but_not_time_after_time() -> None:
    (root,) = agent(3, 500, 100, 1.0).sessions
    child = replace(agent(2, 500, 100, 1.0).sessions[0], parent=0, spawn_step=0)
    plain = Mix.of([WorkflowScript(id="a", sessions=(root,))], STEP_TIME)
    one = Mix.of([WorkflowScript(id="b", sessions=(root, child))], STEP_TIME)
    two = Mix.of([WorkflowScript(id="c", sessions=(root, child, child))], STEP_TIME)
    assert plain.tct_ps < one.tct_ps == two.tct_ps
    assert two.llm_ps - one.llm_ps == pytest.approx(one.llm_ps - plain.llm_ps)
    # five calls one after another, 100 tokens each, feel the batch; the twin runs beside them
    assert one.tct_per_delay_ps == two.tct_per_delay_ps == 500
    # while it waits, the parent keeps its 600 tokens
    waiting = one.held_ps - plain.held_ps
    child_alone = Mix.of(
        [WorkflowScript(id="d", sessions=(replace(child, parent=None),))], STEP_TIME
    )
    assert waiting == pytest.approx(child_alone.held_ps + 600 * child_alone.tct_ps)


def test_a_fork_shares_what_it_was_forked_from() -> None:
    (root,) = agent(1, 5000, 100, 0).sessions
    call = StepScript(kept_tokens=5100, new_tokens=10, output_tokens=100)
    fork = SessionScript(steps=(call,), parent=0, forked_tokens=5100)
    both = WorkflowScript(id="fork", sessions=(root, fork))
    plain, forked = (Mix.of([w], STEP_TIME) for w in (replace(both, sessions=(root,)), both))
    call_ps = forked.llm_ps - plain.llm_ps
    assert forked.held_ps - plain.held_ps == (10 + 50) * call_ps


def test_batches_between_whole_ones_are_between_them() -> None:
    six, middle, seven = (Mix.of([SWE], STEP_TIME).point(batch) for batch in (6, 6.5, 7))
    assert middle.delay_ps == pytest.approx((six.delay_ps + seven.delay_ps) / 2)


@pytest.mark.parametrize("load", [0.01, 0.3, 0.8, 1.0])
def test_operating_point_has_the_rate(load: float) -> None:
    mix = Mix.of([SWE], STEP_TIME)
    top, point = saturation(mix), operating_point(load, mix)
    assert point.rate_per_s == pytest.approx(load * top.rate_per_s)
    assert point.batch <= top.batch
    assert point.kv_tokens <= top.kv_tokens


def test_an_engine_that_mostly_idles_delays_nobody() -> None:
    mix = Mix.of([SWE], STEP_TIME)
    point = operating_point(0.01, mix)
    assert point.batch < 1
    assert point.delay_ps == 0
    assert point.tct_s == pytest.approx(mix.tct_ps / 1e12)


@pytest.mark.parametrize("load", [0.0, -1.0, 1.01, float("nan")])
def test_other_loads_have_no_equilibrium(load: float) -> None:
    with pytest.raises(ValueError, match=f"load={load}: must be above 0 and at most 1"):
        operating_point(load, Mix.of([SWE], STEP_TIME))


def test_what_does_not_fit_is_named() -> None:
    engine = get_cluster("paper-64xa100", kv_capacity_tokens=30_000).engine
    holds = r"Llama-3-70B on 4 x A100-80G holds 30,000 tokens of KV"
    long = Mix.of([SWE], StepTime.of(engine), workload="swe")
    with pytest.raises(ValueError, match=rf"'swe': a session of 31,820 tokens .*; {holds}"):
        saturation(long)
    (root,) = agent(2, 14_000, 100, 600.0).sessions
    twin = replace(root, parent=0, delay_us=0, blocking=False)
    wide = WorkflowScript(id="wide", sessions=(root, twin, twin, twin))
    with pytest.raises(ValueError, match=rf"'swarm': one workflow of 56,480 tokens .*; {holds}"):
        saturation(Mix.of([wide], StepTime.of(engine), workload="swarm"))


def test_empty_workloads_are_refused() -> None:
    with pytest.raises(ValueError, match="'none': has no workflows"):
        Mix.of([], STEP_TIME, workload="none")
    with pytest.raises(ValueError, match="'mute': its workflows have no output tokens"):
        Mix.of([agent(1, 10, 0, 0)], STEP_TIME, workload="mute")


def test_expected_is_alone_when_nobody_else_is_there() -> None:
    idle = Mix.of([SWE], STEP_TIME).point(1.0)
    assert expected_us(SWE, idle, STEP_TIME) == STEP_TIME.alone_us(SWE)


def test_expected_adds_the_delay_to_each_token_of_the_longest_chain() -> None:
    point = operating_point(0.8, Mix.of([SWE], STEP_TIME))
    delay_us = 26 * 170 * point.delay_ps / 1e6
    expected = STEP_TIME.alone_us(SWE) + delay_us
    assert expected_us(SWE, point, STEP_TIME) == pytest.approx(expected, abs=1)
    # the mean of the fluid has the prefix in the cache from the beginning
    prefix_s = STEP_TIME.prefill_ps(0, 4000, 2048) / 1e12
    assert point.tct_s == pytest.approx(expected / 1e6 - prefix_s, rel=0.002)


agents = st.builds(
    agent,
    st.integers(1, 30),
    st.integers(1, 2000),
    st.integers(1, 500),
    st.floats(0, 60),
    st.integers(0, 8000),
)
mixes = st.lists(agents, min_size=1, max_size=4).map(lambda scripts: Mix.of(scripts, STEP_TIME))


@given(mixes, st.floats(0.1, 250), st.floats(0.1, 250))
def test_everything_grows_with_the_batch(mix: Mix, one: float, other: float) -> None:
    low, high = mix.point(min(one, other)), mix.point(max(one, other))
    for value in FluidPoint.__dataclass_fields__:
        below, above = getattr(low, value), getattr(high, value)
        assert below <= above or below == pytest.approx(above), value


@given(mixes, st.integers(70_000, 3_000_000), st.integers(0, 1_000_000))
def test_more_memory_never_saturates_earlier(mix: Mix, tokens: int, more: int) -> None:
    rates = []
    for capacity in (tokens, tokens + more):
        engine = get_cluster("paper-64xa100", kv_capacity_tokens=capacity).engine
        rates.append(saturation(replace(mix, step_time=StepTime.of(engine))).rate_per_s)
    assert rates[0] <= rates[1] * (1 + 1e-9)


@given(st.lists(agents, min_size=1, max_size=3), st.floats(0.01, 1))
def test_expected_is_never_below_alone(scripts: list[WorkflowScript], load: float) -> None:
    point = operating_point(load, Mix.of(scripts, STEP_TIME))
    for script in scripts:
        assert expected_us(script, point, STEP_TIME) >= STEP_TIME.alone_us(script)
