"""What an engine is made of: GPUs, models, and the clusters that have names.

Units are in the names: ``_gbps`` is gigabytes (1e9) per second, ``_gib`` is 2**30 bytes.
Where the figures come from, and how far they can be trusted: docs/physics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

GIB = 2**30

WEIGHT_BYTES = 2
"""Bytes per parameter and per activation: fp16 or bf16."""
KV_BYTES = MappingProxyType({"fp16": 2, "fp8": 1})
"""Bytes per number of the KV cache, by ``kv_dtype``."""
MEMORY_SHARE = 0.90
"""Share of a GPU's memory that the engine takes: vLLM's default ``gpu_memory_utilization``."""
RESERVED_GIB = 3
"""Per GPU: activations and CUDA graphs."""
RESERVED_GIB_PARALLEL = 4
"""The same with tensor parallelism: 1 GiB more for NCCL's buffers."""
TRANSFER_START_US = 20_000
"""Fixed cost of moving a session's KV between engines, before the first byte."""


def _check_whole(option: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{option}={value!r}: must be a whole number of at least {least}")


def _check_number(option: str, value: object, most: float = math.inf, zero: str = "") -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (0 < number < math.inf and number <= most):
        limit = "" if most == math.inf else f" and at most {most:g}"
        off = f", or 0 ({zero})" if zero else ""
        raise ValueError(f"{option}={value!r}: must be a finite number above 0{limit}{off}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One accelerator, and vLLM's serving defaults on it."""

    name: str
    hbm_bytes: int
    """Memory as CUDA reports it, a little below the nominal size."""
    hbm_bytes_per_s: float
    """Peak memory bandwidth."""
    flops: float
    """Peak dense fp16 FLOP/s, without sparsity."""
    pcie_gbps: float
    """Effective bandwidth to host memory, each GPU of an engine by itself."""
    allreduce_us: float
    """Least time of one all-reduce inside a node."""
    allreduce_gbps: float
    """Bytes of the reduced tensor per second (algorithm bandwidth) inside a node."""
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A dense decoder with grouped-query attention, a gated MLP and an untied LM head."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int

    @property
    def layer_params(self) -> int:
        """Parameters of all layers: what one step streams and multiplies besides the LM head."""
        attention = 2 * self.num_heads + 2 * self.num_kv_heads
        layer = self.hidden_size * (attention * self.head_dim + 3 * self.ffn_size)
        return self.num_layers * layer

    @property
    def head_params(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def total_params(self) -> int:
        """Layers, LM head and embedding; biases and norms (below 0.01 %) left out."""
        return self.layer_params + 2 * self.head_params


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One serving replica: a model on ``tp`` GPUs of one node, and how it is configured.

    Raises ValueError that names the option, its value and what is allowed.
    """

    model: ModelSpec
    gpu: GpuSpec
    tp: int
    kv_dtype: str = "fp16"
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int = 16
    host_memory_gib: float = 0.0
    """Host-memory tier of KV, for the whole engine; 0 = off."""
    pcie_gbps: float
    network_gbps: float = 22.0
    """Effective bandwidth of KV moving between engines: one InfiniBand HDR port (peak 25)."""
    kv_capacity_override: int | None = None
    """KV capacity in tokens instead of the one that memory gives."""
    mfu: float = 0.63
    """Share of peak FLOP/s that the layers' matrix products reach; uncertain in [.45, .63]."""
    mbu: float = 0.65
    """Share of peak bandwidth at which weights are read."""
    mfu_attention: float = 0.50
    mbu_kv: float = 0.60

    @classmethod
    def of(cls, model: ModelSpec, gpu: GpuSpec, tp: int = 1, **options: Any) -> Self:
        """An engine with vLLM's serving defaults for the GPU, except for the fields in options."""
        defaults = {
            "max_num_batched_tokens": gpu.max_num_batched_tokens,
            "max_num_seqs": gpu.max_num_seqs,
            "pcie_gbps": gpu.pcie_gbps,
        }
        return cls(model=model, gpu=gpu, tp=tp, **(defaults | options))

    def __post_init__(self) -> None:
        _check_whole("tp", self.tp)
        if self.model.num_kv_heads % self.tp:
            heads = self.model.num_kv_heads
            raise ValueError(f"tp={self.tp}: must divide the {heads} KV heads of {self.model.name}")
        if self.kv_dtype not in KV_BYTES:
            raise ValueError(f"kv_dtype={self.kv_dtype!r}: must be one of {', '.join(KV_BYTES)}")
        _check_whole("block_size", self.block_size)
        _check_whole("max_num_seqs", self.max_num_seqs)
        _check_whole("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs)
        if self.kv_capacity_override is not None:
            _check_whole("kv_capacity_tokens", self.kv_capacity_override, self.block_size)
        for option in ("pcie_gbps", "network_gbps"):
            _check_number(option, getattr(self, option))
        for option in ("mfu", "mbu", "mfu_attention", "mbu_kv"):
            _check_number(option, getattr(self, option), most=1.0)
        if self.host_memory_gib != 0:
            _check_number("host_memory_gib", self.host_memory_gib, zero="off")
        if self.num_blocks < 1:
            raise ValueError(
                f"{self.model.name} on {self.tp} x {self.gpu.name}: {self._kv_bytes / GIB:.1f} GiB "
                f"are left for KV after the weights; at least one block is needed"
            )

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers, over all GPUs of the engine."""
        model = self.model
        return 2 * model.num_layers * model.num_kv_heads * model.head_dim * KV_BYTES[self.kv_dtype]

    @property
    def num_blocks(self) -> int:
        """KV blocks in GPU memory."""
        if self.kv_capacity_override is not None:
            return self.kv_capacity_override // self.block_size
        return int(self._kv_bytes // (self.kv_bytes_per_token * self.block_size))

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV in GPU memory: a whole number of blocks."""
        return self.num_blocks * self.block_size

    @property
    def host_capacity_tokens(self) -> int:
        """Tokens of KV in the host-memory tier: a whole number of blocks."""
        block_bytes = self.kv_bytes_per_token * self.block_size
        return int(self.host_memory_gib * GIB // block_bytes) * self.block_size

    def reload_us(self, tokens: int) -> int:
        """Time to copy tokens of KV between host and GPU memory, all GPUs in parallel."""
        rate = self.tp * self.pcie_gbps * 1e9
        return math.ceil(tokens * self.kv_bytes_per_token / rate * 1e6)

    def transfer_us(self, tokens: int) -> int:
        """Time to move tokens of KV to another engine over the network."""
        rate = self.network_gbps * 1e9
        return TRANSFER_START_US + math.ceil(tokens * self.kv_bytes_per_token / rate * 1e6)

    @property
    def _kv_bytes(self) -> float:
        reserved = RESERVED_GIB if self.tp == 1 else RESERVED_GIB_PARALLEL
        usable = self.tp * (MEMORY_SHARE * self.gpu.hbm_bytes - reserved * GIB)
        return usable - WEIGHT_BYTES * self.model.total_params


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """``num_engines`` equal engines under one name."""

    name: str
    description: str
    num_engines: int
    engine: EngineSpec

    def __post_init__(self) -> None:
        _check_whole("num_engines", self.num_engines)

    @property
    def num_gpus(self) -> int:
        return self.num_engines * self.engine.tp


A100 = GpuSpec(
    name="A100-80G",
    hbm_bytes=int(79.15 * GIB),
    hbm_bytes_per_s=2039e9,
    flops=312e12,
    pcie_gbps=22.0,
    allreduce_us=18.0,
    allreduce_gbps=108.0,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
)
H100 = GpuSpec(
    name="H100-80G",
    hbm_bytes=int(79.10 * GIB),
    hbm_bytes_per_s=3350e9,
    flops=989.4e12,
    pcie_gbps=48.0,
    allreduce_us=20.0,
    allreduce_gbps=207.0,
    max_num_seqs=1024,
    max_num_batched_tokens=8192,
)
H200 = replace(H100, name="H200-141G", hbm_bytes=int(139.8 * GIB), hbm_bytes_per_s=4800e9)

LLAMA_70B = ModelSpec(
    name="Llama-3-70B",
    num_layers=80,
    hidden_size=8192,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    ffn_size=28672,
    vocab_size=128256,
)
LLAMA_8B = ModelSpec(
    name="Llama-3-8B",
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn_size=14336,
    vocab_size=128256,
)
QWEN_7B = ModelSpec(
    name="Qwen2.5-7B",
    num_layers=28,
    hidden_size=3584,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    ffn_size=18944,
    vocab_size=152064,
)
QWEN_32B = ModelSpec(
    name="Qwen2.5-32B",
    num_layers=64,
    hidden_size=5120,
    num_heads=40,
    num_kv_heads=8,
    head_dim=128,
    ffn_size=27648,
    vocab_size=152064,
)


def _cluster(name: str, num_engines: int, model: ModelSpec, gpu: GpuSpec, tp: int) -> ClusterSpec:
    gpus = f"{num_engines * tp} x {gpu.name}"
    engines = f"{num_engines} engines of {model.name}, {tp} GPU{'s' if tp > 1 else ''} each"
    engine = EngineSpec.of(model, gpu, tp)
    return ClusterSpec(
        name=name, description=f"{gpus}: {engines}", num_engines=num_engines, engine=engine
    )


CLUSTERS = MappingProxyType(
    {
        cluster.name: cluster
        for cluster in (
            _cluster("paper-64xa100", 16, LLAMA_70B, A100, 4),
            _cluster("paper-32xa100", 8, LLAMA_70B, A100, 4),
            _cluster("paper-16xa100", 4, LLAMA_70B, A100, 4),
            _cluster("64xh100", 16, LLAMA_70B, H100, 4),
            _cluster("64xh200", 16, LLAMA_70B, H200, 4),
            _cluster("16xa100-8b", 16, LLAMA_8B, A100, 1),
            _cluster("16xh100-8b", 16, LLAMA_8B, H100, 1),
            _cluster("16xh200-8b", 16, LLAMA_8B, H200, 1),
            _cluster("32xa100-32b", 16, QWEN_32B, A100, 2),
            _cluster("16xh200-32b", 16, QWEN_32B, H200, 1),
        )
    }
)
"""The named clusters."""

ENGINE_OPTIONS = MappingProxyType(
    {
        "host_memory_gib": "host_memory_gib",
        "pcie_gbps": "pcie_gbps",
        "network_gbps": "network_gbps",
        "kv_dtype": "kv_dtype",
        "max_num_seqs": "max_num_seqs",
        "max_num_batched_tokens": "max_num_batched_tokens",
        "kv_capacity_tokens": "kv_capacity_override",
        "mfu": "mfu",
        "mbu": "mbu",
    }
)
"""Options of a cluster that change its engines, and the field of EngineSpec that each one sets."""


def get_cluster(name: str, **options: Any) -> ClusterSpec:
    """The cluster of that name, changed by the options that are not None.

    Options: ``num_engines`` and those in ENGINE_OPTIONS. Raises ValueError for an unknown name or
    option, and for a value that is not allowed.
    """
    if name not in CLUSTERS:
        raise ValueError(f"cluster {name!r}: unknown; known are {', '.join(CLUSTERS)}")
    known = ("num_engines", *ENGINE_OPTIONS)
    for option in options:
        if option not in known:
            raise ValueError(f"cluster option {option!r}: unknown; known are {', '.join(known)}")
    cluster = CLUSTERS[name]
    given = {option: value for option, value in options.items() if value is not None}
    num_engines = given.pop("num_engines", cluster.num_engines)
    fields = {ENGINE_OPTIONS[option]: value for option, value in given.items()}
    return replace(cluster, num_engines=num_engines, engine=replace(cluster.engine, **fields))
