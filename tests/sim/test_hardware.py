import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.sim.hardware import (
    A100,
    CLUSTERS,
    GIB,
    H100,
    H200,
    LLAMA_8B,
    LLAMA_70B,
    QWEN_7B,
    QWEN_32B,
    ClusterSpec,
    EngineSpec,
    GpuSpec,
    ModelSpec,
    get_cluster,
)

# Tokens of KV that fit into the memory that is left; milliseconds to copy 32,768 tokens of KV
# from host memory. Calculated apart from this code, see docs/physics.md.
TABLE = [
    (LLAMA_70B, A100, 4, 450_644, 122),
    (LLAMA_70B, A100, 8, 1_331_907, 61),
    (LLAMA_70B, H100, 4, 450_055, 56),
    (LLAMA_70B, H100, 8, 1_330_727, 28),
    (LLAMA_70B, H200, 4, 1_166_101, 56),
    (LLAMA_70B, H200, 8, 2_762_820, 28),
    (LLAMA_8B, A100, 1, 436_453, 195),
    (LLAMA_8B, H100, 1, 436_084, 89),
    (LLAMA_8B, H200, 1, 883_613, 89),
    (QWEN_7B, A100, 1, 1_012_071, 85),
    (QWEN_7B, H100, 1, 1_011_228, 39),
    (QWEN_7B, H200, 1, 2_034_151, 39),
    (QWEN_32B, A100, 2, 300_829, 195),
    (QWEN_32B, H100, 1, 29_346, 179),
    (QWEN_32B, H200, 1, 253_110, 179),
]


@pytest.mark.parametrize(("model", "gpu", "tp", "tokens", "reload_ms"), TABLE)
def test_table(model: ModelSpec, gpu: GpuSpec, tp: int, tokens: int, reload_ms: int) -> None:
    engine = EngineSpec.of(model, gpu, tp)
    assert tokens - 16 < engine.kv_capacity_tokens <= tokens
    assert engine.reload_us(32_768) / 1000 == pytest.approx(reload_ms, abs=1)


@pytest.mark.parametrize(
    ("model", "params", "kv_kib"),
    [
        (LLAMA_70B, 70.55e9, 320),
        (LLAMA_8B, 8.03e9, 128),
        (QWEN_7B, 7.62e9, 56),
        (QWEN_32B, 32.76e9, 256),
    ],
)
def test_models_have_their_published_sizes(model: ModelSpec, params: float, kv_kib: int) -> None:
    assert model.total_params == pytest.approx(params, rel=1e-3)
    assert EngineSpec.of(model, H200, 2).kv_bytes_per_token == kv_kib * 1024


def test_fp8_halves_a_token_and_doubles_the_room() -> None:
    fp16 = get_cluster("paper-64xa100").engine
    fp8 = get_cluster("paper-64xa100", kv_dtype="fp8").engine
    assert 2 * fp8.kv_bytes_per_token == fp16.kv_bytes_per_token
    assert 0 <= fp8.kv_capacity_tokens - 2 * fp16.kv_capacity_tokens <= 16


def test_host_memory_holds_whole_blocks() -> None:
    assert get_cluster("paper-64xa100").engine.host_capacity_tokens == 0
    engine = get_cluster("paper-64xa100", host_memory_gib=366).engine
    assert engine.host_capacity_tokens == 366 * GIB // (16 * 320 * 1024) * 16


def test_moving_kv_takes_a_start_and_its_bytes() -> None:
    engine = get_cluster("paper-64xa100").engine
    assert engine.transfer_us(0) == 20_000
    assert engine.transfer_us(32_768) == 20_000 + 488_065
    assert engine.reload_us(0) == 0


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_moving_in_parts_is_never_faster(first: int, second: int) -> None:
    engine = get_cluster("16xh100-8b").engine
    whole, parts = first + second, (first, second)
    assert (
        engine.reload_us(whole) <= sum(map(engine.reload_us, parts)) <= engine.reload_us(whole) + 1
    )
    assert engine.transfer_us(whole) <= sum(map(engine.transfer_us, parts))


@pytest.mark.parametrize(
    ("name", "num_engines", "num_gpus"),
    [
        ("paper-64xa100", 16, 64),
        ("paper-32xa100", 8, 32),
        ("paper-16xa100", 4, 16),
        ("64xh100", 16, 64),
        ("64xh200", 16, 64),
        ("16xa100-8b", 16, 16),
        ("16xh100-8b", 16, 16),
        ("16xh200-8b", 16, 16),
        ("32xa100-32b", 16, 32),
        ("16xh200-32b", 16, 16),
    ],
)
def test_clusters_have_the_size_in_their_name(name: str, num_engines: int, num_gpus: int) -> None:
    cluster = get_cluster(name)
    assert (cluster.name, cluster.num_engines, cluster.num_gpus) == (name, num_engines, num_gpus)
    assert f"{num_gpus}x" in name
    assert cluster.description.startswith(f"{num_gpus} x ")


def test_every_cluster_has_been_looked_at() -> None:
    assert len(CLUSTERS) == 10


def test_engines_have_the_serving_defaults_of_vllm() -> None:
    a100, h100 = get_cluster("paper-64xa100").engine, get_cluster("64xh100").engine
    assert (a100.max_num_batched_tokens, a100.max_num_seqs) == (2048, 256)
    assert (h100.max_num_batched_tokens, h100.max_num_seqs) == (8192, 1024)


def test_options_replace_what_the_cluster_has() -> None:
    cluster = get_cluster(
        "paper-64xa100",
        num_engines=3,
        host_memory_gib=100,
        pcie_gbps=10.0,
        network_gbps=5.0,
        kv_dtype="fp8",
        max_num_seqs=7,
        max_num_batched_tokens=512,
        kv_capacity_tokens=1000,
        mfu=0.45,
        mbu=0.5,
    )
    engine = cluster.engine
    assert cluster.num_engines == 3
    assert engine.kv_capacity_tokens == 992, "whole blocks of 16"
    assert (engine.host_memory_gib, engine.pcie_gbps, engine.network_gbps) == (100, 10.0, 5.0)
    assert (engine.kv_dtype, engine.max_num_seqs, engine.max_num_batched_tokens) == ("fp8", 7, 512)
    assert (engine.mfu, engine.mbu) == (0.45, 0.5)


def test_options_that_are_none_change_nothing() -> None:
    assert get_cluster("64xh100", num_engines=None, mfu=None) == get_cluster("64xh100")


def test_unknown_names_are_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"cluster '64xb200': unknown; known are paper-64xa100, "):
        get_cluster("64xb200")
    with pytest.raises(
        ValueError, match=r"option 'gpus': unknown; known are num_engines, host_mem"
    ):
        get_cluster("64xh100", gpus=3)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("num_engines", 0, "whole number of at least 1"),
        ("num_engines", 2.0, "whole number of at least 1"),
        ("num_engines", True, "whole number of at least 1"),
        ("host_memory_gib", -1, r"above 0, or 0 \(off\)"),
        ("host_memory_gib", "8", r"above 0, or 0 \(off\)"),
        ("pcie_gbps", 0, "finite number above 0"),
        ("network_gbps", float("inf"), "finite number above 0"),
        ("network_gbps", float("nan"), "finite number above 0"),
        ("kv_dtype", "int4", "one of fp16, fp8"),
        ("max_num_seqs", 0, "whole number of at least 1"),
        ("max_num_batched_tokens", 255, "whole number of at least 256"),
        ("kv_capacity_tokens", 15, "whole number of at least 16"),
        ("mfu", 1.01, "above 0 and at most 1"),
        ("mfu", 0, "above 0 and at most 1"),
        ("mbu", -0.5, "above 0 and at most 1"),
    ],
)
def test_bad_values_are_named(option: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"{option}={value!r}: must be .*{allowed}"):
        get_cluster("paper-64xa100", **{option: value})


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Llama-3-70B on 1 x A100-80G: -63\.2 GiB are left"):
        EngineSpec.of(LLAMA_70B, A100)


def test_heads_are_not_split() -> None:
    with pytest.raises(ValueError, match="tp=3: must divide the 8 KV heads of Llama-3-70B"):
        EngineSpec.of(LLAMA_70B, H200, 3)


def test_a_cluster_needs_an_engine() -> None:
    engine = get_cluster("64xh100").engine
    with pytest.raises(ValueError, match="num_engines=0"):
        ClusterSpec(name="none", description="", num_engines=0, engine=engine)
