"""Models by their shape alone: vLLM fills them with random weights (``--load-format dummy``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.model import CONFIG, make_model

from saga.sim.hardware import LLAMA_8B, QWEN_32B, ModelSpec

TINY = ModelSpec(
    name="tiny",
    num_layers=2,
    hidden_size=64,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    ffn_size=128,
    vocab_size=1_024,
)
"""For a CPU, to try the benchmark itself; its figures say nothing."""
SHAPES: Mapping[str, ModelSpec] = {"8b": LLAMA_8B, "32b": QWEN_32B, "tiny": TINY}
FIRST_WORD = 300
"""Token ids from here on are in no text; those below are bytes and marks of the tokenizer."""


def write(folder: Path, shape: ModelSpec, max_len: int) -> Path:
    """A model's folder without weights."""
    make_model(folder)
    (folder / "model.safetensors").unlink()
    config = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": max_len,
    }
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    return folder
