"""vLLM's own scheduler and KV cache manager, without a model and without a device."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.structured_output import StructuredOutputManager

_MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 8,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
"""Any decoder will do: its sizes decide nothing that the scheduler does."""
PLUGIN = {"tenant_share": 1.0, "events_endpoint": None}
"""How SAGA's plugin is set up: the simulator's sessions do not tell their tenants."""


def make_scheduler(
    kind: type[Scheduler],
    *,
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    reserve_full_prompt: bool,
) -> Scheduler:
    """One of this kind: by priority, then in order of arrival, one step at a time, with prefix
    caching and chunked prefill. All of ``num_blocks`` can be used."""
    pool = num_blocks + 1  # vLLM never uses its first block
    config = _config(pool, block_size, max_num_seqs, max_num_batched_tokens, reserve_full_prompt)
    group = FullAttentionSpec(
        block_size=block_size, num_kv_heads=1, head_size=8, dtype=torch.bfloat16
    )
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=pool,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], group)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        hash_block_size=block_size,
        log_stats=False,
    )


@cache
def _config(
    pool: int,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    reserve_full_prompt: bool,
) -> VllmConfig:
    longest = pool * block_size
    logging.getLogger("vllm").setLevel(logging.ERROR)  # what it misses here, nobody needs
    config = VllmConfig(
        model_config=_model(longest),
        cache_config=CacheConfig(block_size=block_size, enable_prefix_caching=True),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=longest,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            async_scheduling=False,
            policy="priority",
            scheduler_reserve_full_isl=reserve_full_prompt,
        ),
        additional_config={"saga": PLUGIN},
    )
    config.cache_config.num_gpu_blocks = pool
    return config


def _model(longest: int) -> ModelConfig:
    with TemporaryDirectory() as folder:
        config = {**_MODEL, "max_position_embeddings": longest}
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return ModelConfig(
            model=folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=longest
        )
