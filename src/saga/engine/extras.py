"""/v1/embeddings and /tokenize: answers that take no time in the model."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from hashlib import shake_128
from typing import Any

import numpy as np

from saga.engine.asks import whole_number
from saga.engine.chat import chat_turns
from saga.engine.exchange import ApiError
from saga.engine.tokens import Prompt, from_token_ids, raw_prompt, render, text_part, token_ids

DIMENSIONS = 64
MAX_DIMENSIONS = 4_096
MAX_INPUTS = 2_048


def embeddings(body: Mapping[str, Any]) -> dict[str, Any]:
    """A unit vector for each input, always the same for the same text. Raises ApiError."""
    texts = _inputs(body.get("input"))
    size = whole_number(body, "dimensions", 1) or DIMENSIONS
    if size > MAX_DIMENSIONS:
        raise ApiError(400, f"dimensions must be at most {MAX_DIMENSIONS}", param="dimensions")
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(text, size, packed=packed)}
        for index, text in enumerate(texts)
    ]
    num_tokens = sum(raw_prompt(text).num_tokens for text in texts)
    return {
        "object": "list",
        "model": body.get("model"),
        "data": data,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _inputs(value: Any) -> list[bytes]:
    """Texts or lists of token ids, or one of either."""
    items = value if isinstance(value, list) and value and type(value[0]) is not int else [value]
    if len(items) > MAX_INPUTS:
        raise ApiError(400, f"input must have at most {MAX_INPUTS} items", param="input")
    return [_text(item) for item in items]


def _text(item: Any) -> bytes:
    if isinstance(item, str):
        return text_part(item)
    if isinstance(item, list) and item and all(type(token) is int for token in item):
        return from_token_ids(item)
    raise ApiError(400, "input must be texts or lists of token ids", param="input")


def _vector(text: bytes, size: int, *, packed: bool) -> str | list[float]:
    raw = np.frombuffer(shake_128(text).digest(size), dtype=np.uint8) - np.float32(127.5)
    vector = (raw / np.linalg.norm(raw)).astype("<f4")
    return base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist()


def tokenize(body: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """The tokens of a raw prompt, or of a chat as it is rendered. Raises ApiError."""
    prompt = _prompt(body)
    return {
        "count": prompt.num_tokens,
        "max_model_len": max_tokens,
        "tokens": token_ids(prompt),
        "token_strs": None,
    }


def _prompt(body: Mapping[str, Any]) -> Prompt:
    if "messages" in body:
        return render(chat_turns(body))
    if not isinstance(body.get("prompt"), str):
        raise ApiError(400, "prompt must be a text", param="prompt")
    return raw_prompt(text_part(body["prompt"]))
