from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.config import load_preset
from saga.sim.hardware import (
    A100,
    H100,
    H200,
    LLAMA_8B,
    LLAMA_70B,
    QWEN_7B,
    QWEN_32B,
    EngineSpec,
    GpuSpec,
    ModelSpec,
    get_cluster,
)
from saga.sim.host import Simulation
from saga.sim.latency import StepTime, hit_tokens
from saga.sim.plan import Plan
from saga.traces.script import SessionScript, StepScript, WorkflowScript

STEP_TIME = StepTime.of(get_cluster("paper-64xa100").engine)
SECOND = 1_000_000

# Seconds to prefill 16 Ki, 32 Ki and 64 Ki tokens alone; milliseconds of a step of 1, 16 and 32
# decodes at 16 Ki tokens of context. Calculated apart from this code, see docs/physics.md.
TABLE = [
    (LLAMA_70B, A100, 4, (3.84, 8.81, 22.12), (32.9, 49.6, 67.6)),
    (LLAMA_70B, A100, 8, (2.13, 4.82, 11.89), (19.2, 27.6, 36.7)),
    (LLAMA_70B, H100, 4, (1.29, 2.94, 7.31), (22.5, 32.6, 43.5)),
    (LLAMA_70B, H100, 8, (0.75, 1.69, 4.08), (14.2, 19.3, 24.7)),
    (LLAMA_70B, H200, 4, (1.29, 2.94, 7.30), (17.5, 24.6, 32.2)),
    (LLAMA_70B, H200, 8, (0.75, 1.69, 4.08), (11.7, 15.3, 19.1)),
    (LLAMA_8B, A100, 1, (1.63, 4.17, 11.95), (14.2, 40.7, 69.0)),
    (LLAMA_8B, H100, 1, (0.51, 1.31, 3.76), (9.1, 25.2, 42.4)),
    (LLAMA_8B, H200, 1, (0.51, 1.31, 3.76), (6.7, 18.0, 30.0)),
    (QWEN_7B, A100, 1, (1.45, 3.59, 9.95), (12.5, 24.1, 36.6)),
    (QWEN_7B, H100, 1, (0.46, 1.13, 3.13), (8.0, 15.1, 22.7)),
    (QWEN_7B, H200, 1, (0.45, 1.13, 3.13), (5.9, 10.9, 16.2)),
    (QWEN_32B, A100, 2, (3.39, 7.91, 20.32), (30.4, 56.9, 85.5)),
    (QWEN_32B, H100, 1, (2.00, 4.72, 12.28), (33.7, 65.9, 100.3)),
    (QWEN_32B, H200, 1, (2.00, 4.71, 12.27), (24.2, 46.7, 70.8)),
]


@pytest.mark.parametrize(("model", "gpu", "tp", "prefill_s", "decode_ms"), TABLE)
def test_table(
    model: ModelSpec,
    gpu: GpuSpec,
    tp: int,
    prefill_s: tuple[float, ...],
    decode_ms: tuple[float, ...],
) -> None:
    engine = EngineSpec.of(model, gpu, tp)
    time = StepTime.of(engine)
    chunk = engine.max_num_batched_tokens
    prefills = [time.prefill_ps(0, size * 1024, chunk) / 1e12 for size in (16, 32, 64)]
    decodes = [time.step_ps(batch, batch, batch * 16384, 0) / 1e9 for batch in (1, 16, 32)]
    assert prefills == pytest.approx(prefill_s, rel=0.012)  # the table has two or three digits
    assert decodes == pytest.approx(decode_ms, rel=0.005)


# Matrix products and pointwise kernels of all 80 layers of a 70B model in milliseconds, measured by
# the Vidur project (docs/physics.md), and the mean absolute error that is allowed. The formula has
# the same two shares of peak everywhere; it is worst for the eightfold split, which no named
# cluster uses.
VIDUR = [
    (A100, 4, 0.04, {1: 25.0, 64: 27.1, 128: 33.8, 256: 51.4, 512: 90.8, 2048: 345.6, 8192: 1313}),
    (A100, 8, 0.11, {1: 14.4, 64: 15.8, 128: 19.2, 256: 31.1, 512: 53, 2048: 191, 8192: 721}),
    (H100, 4, 0.07, {1: 14.5, 64: 15.4, 128: 16.2, 256: 19.5, 512: 30.6, 2048: 116}),
    (H100, 8, 0.125, {1: 8.4, 64: 9.1, 128: 10.2, 256: 11.8, 512: 18.2, 2048: 66}),
]


@pytest.mark.parametrize(("gpu", "tp", "allowed", "measured_ms"), VIDUR)
def test_layers_against_measurements(
    gpu: GpuSpec, tp: int, allowed: float, measured_ms: dict[int, float]
) -> None:
    time = StepTime.of(EngineSpec.of(LLAMA_70B, gpu, tp))
    errors = [time.layers_ps(tokens) / 1e9 / ms - 1 for tokens, ms in measured_ms.items()]
    assert mean(map(abs, errors)) < allowed
    assert max(map(abs, errors)) < 0.18


def test_a_step_is_the_sum_of_its_parts() -> None:
    """70B on 4 A100: one prefill chunk of 400 tokens at 16,000, and 15 decodes at 10,000."""
    base = STEP_TIME.base_ps(415, 16)
    assert STEP_TIME.kv_ps == 66_961  # 327,680 B / (4 * 2039 GB/s * .60)
    assert STEP_TIME.attn_ps == 4_201  # 4 * 80 * 8192 FLOP / (4 * 312 TFLOP/s * .50)
    pairs = 400 * 16_000 + 400 * 400 // 2
    assert STEP_TIME.step_ps(415, 16, 150_000, pairs) == base + 66_961 * 150_000 + 4_201 * 6_480_000
    # layers hypot(25.8, 72.2) ms, all-reduces 160 * 63 us, 16 KiB a token at 108 GB/s,
    # LM head .4 ms, overheads 80 * 32 + 126 + 16 * 4.4 us
    assert base / 1e9 == pytest.approx(76.71 + 10.07 + 0.40 + 2.76, abs=0.05)


def test_a_single_gpu_has_no_allreduce() -> None:
    time = StepTime.of(get_cluster("16xa100-8b").engine)
    assert (time.allreduce_least_ps, time.allreduce_token_ps) == (0, 0)


def test_fp8_reads_half() -> None:
    fp8 = StepTime.of(get_cluster("paper-64xa100", kv_dtype="fp8").engine)
    assert fp8.kv_ps == pytest.approx(STEP_TIME.kv_ps / 2, abs=1)
    assert fp8.attn_ps == STEP_TIME.attn_ps


@pytest.mark.parametrize(("num_tokens", "num_seqs"), [(0, 1), (1, 0)])
def test_a_step_without_work_is_refused(num_tokens: int, num_seqs: int) -> None:
    with pytest.raises(ValueError, match=f"num_tokens={num_tokens}, num_seqs={num_seqs}"):
        STEP_TIME.base_ps(num_tokens, num_seqs)


@given(st.integers(1, 8192), st.integers(1, 1024), st.integers(0, 500), st.integers(0, 50))
def test_more_work_takes_longer(tokens: int, seqs: int, more: int, more_seqs: int) -> None:
    time = STEP_TIME.base_ps
    assert time(tokens + more, seqs) >= time(tokens, seqs)
    assert time(tokens, seqs + more_seqs) >= time(tokens, seqs)
    assert time(tokens, seqs) == time(tokens, seqs), "remembered as calculated"


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_one_batch_is_never_slower_than_two(first: int, second: int) -> None:
    both = STEP_TIME.base_ps(first + second, 2)
    assert both <= STEP_TIME.base_ps(first, 1) + STEP_TIME.base_ps(second, 1)


@given(st.sampled_from(["mfu", "mbu"]), st.floats(0.3, 0.62), st.integers(1, 4096))
def test_a_slower_engine_is_slower(share: str, value: float, tokens: int) -> None:
    slow = StepTime.of(get_cluster("paper-64xa100", **{share: value}).engine)
    assert slow.base_ps(tokens, 1) >= STEP_TIME.base_ps(tokens, 1)


@given(
    st.lists(st.integers(1, 100_000), min_size=1, max_size=20),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_a_jump_is_exactly_its_steps(contexts: list[int], first: int, second: int) -> None:
    seqs, context = len(contexts), sum(contexts)
    stepped = sum(
        STEP_TIME.step_ps(seqs, seqs, sum(tokens + step for tokens in contexts), 0)
        for step in range(first + second)
    )
    assert STEP_TIME.decode_ps(first + second, seqs, context) == stepped
    halves = STEP_TIME.decode_ps(first, seqs, context) + STEP_TIME.decode_ps(
        second, seqs, context + seqs * first
    )
    assert halves == stepped


@given(st.integers(0, 60_000), st.integers(0, 20), st.integers(0, 2047))
def test_a_prefill_is_exactly_its_chunks(start: int, chunks: int, rest: int) -> None:
    middle, stop = start + chunks * 2048, start + chunks * 2048 + rest
    parts = STEP_TIME.prefill_ps(start, middle, 2048) + STEP_TIME.prefill_ps(middle, stop, 2048)
    assert STEP_TIME.prefill_ps(start, stop, 2048) == parts


@given(st.integers(0, 60_000), st.integers(1, 20_000), st.integers(0, 3))
def test_attention_does_not_depend_on_the_chunks(start: int, size: int, halvings: int) -> None:
    chunk = 2048 >> halvings
    pairs = STEP_TIME.prefill_ps(start, start + size, chunk) - sum(
        STEP_TIME.base_ps(min(chunk, size - done), 1) for done in range(0, size, chunk)
    )
    exact = STEP_TIME.attn_ps * (size * start + size * size / 2)
    assert abs(pairs - exact) <= STEP_TIME.attn_ps * (size // chunk + 1) / 2


# ---- workflows alone


def step(kept: int, new: int, output: int, gap_s: float = 0) -> StepScript:
    return StepScript(
        kept_tokens=kept, new_tokens=new, output_tokens=output, gap_us=int(gap_s * SECOND)
    )


def workflow(*sessions: SessionScript) -> WorkflowScript:
    return WorkflowScript(id="w", sessions=sessions)


def call_us(hit: int, prompt: int, output: int) -> float:
    """One LLM call, token by token."""
    ps = STEP_TIME.prefill_ps(hit, prompt, 2048)
    for token in range(output - 1):
        ps += STEP_TIME.step_ps(1, 1, prompt + token, 0)
    return ps / 1e6


def test_alone_adds_calls_and_gaps() -> None:
    script = workflow(SessionScript(steps=(step(0, 5000, 100, gap_s=3), step(5100, 400, 50))))
    # of 5,099 tokens computed, 318 blocks are full: 5,088 hit
    expected = call_us(0, 5000, 100) + 3 * SECOND + call_us(5088, 5500, 50)
    assert STEP_TIME.alone_us(script) == int(expected)


def test_a_prompt_that_was_all_there_computes_its_last_block() -> None:
    script = workflow(SessionScript(steps=(step(0, 64, 33), step(64, 0, 1))))
    assert hit_tokens(script, 16) == [[0, 48]]


def test_a_cut_context_hits_what_it_kept() -> None:
    script = workflow(SessionScript(steps=(step(0, 1000, 10), step(500, 100, 10))))
    assert hit_tokens(script, 16) == [[0, 496]]


def test_prefixes_hit_from_their_second_use_or_when_warm() -> None:
    root = SessionScript(steps=(step(800, 200, 10),), prefix="tools", prefix_tokens=800)
    child = SessionScript(steps=(step(800, 5, 10),), prefix="tools", prefix_tokens=800, parent=0)
    other = SessionScript(steps=(step(800, 5, 10),), prefix="other", prefix_tokens=800, parent=0)
    script = workflow(root, child, other)
    assert hit_tokens(script, 16) == [[0], [800], [0]]
    assert hit_tokens(script, 16, warm=True) == [[800], [800], [800]]


def test_a_fork_hits_what_its_parent_computed() -> None:
    """The last of the parent's 1,040 tokens was never computed, so neither was its block."""
    root = SessionScript(steps=(step(0, 1000, 40), step(1040, 100, 10)))
    fork = SessionScript(steps=(step(1040, 100, 10),), parent=0, spawn_step=0, forked_tokens=1040)
    late = SessionScript(steps=(step(320, 100, 10),), parent=0, spawn_step=1, forked_tokens=320)
    assert hit_tokens(workflow(root, fork, late), 16) == [[0, 1024], [1024], [320]]


def test_parents_wait_for_blocking_sub_agents_and_then_for_the_gap() -> None:
    root = SessionScript(steps=(step(0, 1000, 10, gap_s=1), step(1010, 90, 10)))
    quick = SessionScript(steps=(step(0, 500, 5),), parent=0, delay_us=1000)
    slow = SessionScript(steps=(step(0, 500, 50),), parent=0, delay_us=1000)
    first, second = call_us(0, 1000, 10), call_us(1008, 1100, 10)
    children = 1000 + call_us(0, 500, 50)
    together = first + children + SECOND + second
    assert STEP_TIME.alone_us(workflow(root, quick, slow)) == int(together)
    # one that nobody waits for counts when it outlives the rest
    beside = replace(slow, blocking=False)
    assert STEP_TIME.alone_us(workflow(root, beside)) == int(
        max(first + children, first + SECOND + second)
    )
    outliving = replace(beside, delay_us=60 * SECOND)
    assert STEP_TIME.alone_us(workflow(root, outliving)) == int(
        first + 60 * SECOND + call_us(0, 500, 50)
    )


def test_sub_agents_of_sub_agents() -> None:
    root = SessionScript(steps=(step(0, 100, 2), step(102, 10, 2)))
    child = SessionScript(steps=(step(0, 100, 2), step(102, 10, 2)), parent=0)
    grandchild = SessionScript(steps=(step(0, 100, 30),), parent=1)
    two = call_us(0, 100, 2) + call_us(96, 112, 2)
    assert STEP_TIME.alone_us(workflow(root, child, grandchild)) == int(
        two + two + call_us(0, 100, 30)
    )


def test_the_simulator_agrees() -> None:
    """It rounds each event up to a microsecond: at most two for each call."""
    cluster = get_cluster("paper-16xa100", num_engines=1)
    steps, context = [], 0
    for number in range(20):
        steps.append(step(context, 3000 - 100 * number, 50 + 7 * number, gap_s=number % 3))
        context += 3050 - 93 * number
    script = workflow(SessionScript(steps=(*steps[:-1], replace(steps[-1], gap_us=0))))
    alone = STEP_TIME.alone_us(script)
    plan = Plan(scripts=[script], arrivals=[0], alone_us=[alone], expected_us=[alone], warmup=0)
    run = Simulation(plan, load_preset("vllm_apc_affinity").policies, cluster).run()
    simulated = run.workflows[0].tct_us
    assert simulated is not None
    assert 0 <= simulated - alone <= 2 * len(steps)


def test_half_an_engine_takes_twice_as_long_for_calls_and_no_longer_for_tools() -> None:
    script = workflow(SessionScript(steps=(step(0, 1000, 10, gap_s=7), step(1010, 90, 10))))
    calls = call_us(0, 1000, 10) + call_us(1008, 1100, 10)
    assert STEP_TIME.alone_us(script, 0.5) == int(2 * calls + 7 * SECOND)


def test_sub_agents_on_a_share_decide_when_they_take_longer_than_the_parent() -> None:
    """The gap of 1 s covers the sub-agent on a whole engine, and not on a hundredth of one."""
    root = SessionScript(steps=(step(0, 1000, 10, gap_s=1), step(1010, 90, 10)))
    child = SessionScript(steps=(step(0, 500, 20),), parent=0, blocking=False)
    first, second = call_us(0, 1000, 10), call_us(1008, 1100, 10)
    assert STEP_TIME.alone_us(workflow(root, child)) == int(first + SECOND + second)
    assert STEP_TIME.alone_us(workflow(root, child), 0.01) == int(
        100 * first + max(SECOND + 100 * second, 100 * call_us(0, 500, 20))
    )


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 400), st.integers(0, 30)), min_size=1)
)
def test_alone_is_at_least_tools_and_decodes(parts: list[tuple[int, int, int]]) -> None:
    steps, context = [], 0
    for new, output, gap_s in parts:
        steps.append(step(context, new, output, gap_s))
        context += new + output
    script = workflow(SessionScript(steps=(*steps[:-1], replace(steps[-1], gap_us=0))))
    gaps = sum(gap_s for *_, gap_s in parts[:-1]) * SECOND
    tokens = sum(output for _, output, _ in parts)
    floor = gaps + tokens * STEP_TIME.base_ps(1, 1) // 1_000_000
    assert floor <= STEP_TIME.alone_us(script)
    longer = replace(script, sessions=(SessionScript(steps=(*steps, step(context, 1, 1))),))
    assert STEP_TIME.alone_us(longer) > STEP_TIME.alone_us(script)
