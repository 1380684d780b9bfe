"""A language model that says nothing sensible, made here and now: no download, 0.5 MB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HIDDEN = 64
HEADS = 2
KV_HEADS = 1
HEAD_SIZE = 32
INNER = 128
LAYERS = 2
MAX_LEN = 4_096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)
"""Every byte is a token, so that texts of ASCII have as many tokens as letters."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Weights = NDArray[np.float32]


def make_model(folder: Path) -> Path:
    """Writes a Qwen2 of random weights. It answers in printable ASCII and never ends by itself.

    The weights are large enough for every answer to depend on all of the context.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", CONFIG)
    _write(folder / "tokenizer.json", _tokenizer())
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": MAX_LEN,
            "chat_template": TEMPLATE,
        },
    )
    _write_safetensors(folder / "model.safetensors", dict(_weights(np.random.default_rng(0))))
    return folder


CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_SIZE,
    "max_position_embeddings": MAX_LEN,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 258,
    "torch_dtype": "bfloat16",
}


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def _tokenizer() -> dict[str, object]:
    """Byte-level BPE without a merge, in the format of the ``tokenizers`` library."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 256 + number, "content": text, "special": True, **flags}
            for number, text in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {letter: byte for byte, letter in enumerate(_letters())},
            "merges": [],
        },
    }


def _letters() -> Iterator[str]:
    """The letter that stands for each byte in byte-level BPE: a visible one (GPT-2's table)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = 0
    for byte in range(256):
        if byte in visible:
            yield chr(byte)
        else:
            yield chr(256 + hidden)
            hidden += 1


def _weights(chance: np.random.Generator) -> Iterator[tuple[str, Weights]]:
    def normal(*shape: int, std: float = 0.25) -> Weights:
        return chance.normal(0.0, std, shape).astype(np.float32)

    query, key = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    yield "model.embed_tokens.weight", normal(VOCABULARY, HIDDEN, std=0.5)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", np.ones(HIDDEN, np.float32)
        for part, size in (("q", query), ("k", key), ("v", key)):
            yield f"{name}.self_attn.{part}_proj.weight", normal(size, HIDDEN)
            yield f"{name}.self_attn.{part}_proj.bias", normal(size)
        yield f"{name}.self_attn.o_proj.weight", normal(HIDDEN, query)
        yield f"{name}.post_attention_layernorm.weight", np.ones(HIDDEN, np.float32)
        yield f"{name}.mlp.gate_proj.weight", normal(INNER, HIDDEN)
        yield f"{name}.mlp.up_proj.weight", normal(INNER, HIDDEN)
        yield f"{name}.mlp.down_proj.weight", normal(HIDDEN, INNER)
    yield "model.norm.weight", np.ones(HIDDEN, np.float32)
    head = np.zeros((VOCABULARY, HIDDEN), np.float32)
    head[32:127] = normal(95, HIDDEN, std=0.5)  # all others stay below the best of these
    yield "lm_head.weight", head


def _write_safetensors(path: Path, tensors: dict[str, Weights]) -> None:
    """Length of the header (8 bytes, little endian), header (JSON), then the numbers."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
