"""What the tests of the plugin in real servers share: a small cache, and traffic that fills it."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from tests.e2e.processes import MODEL, Vllm, post

SMALL = ("--num-gpu-blocks-override", "400", "--scheduling-policy", "priority")
"""400 blocks of 32 tokens: room for about six of these prompts."""
PLUGIN = ("--scheduler-cls", "saga.engine.vllm.Scheduler")
GAP_REQUESTS = 10


def complete(server: Vllm, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 16, "temperature": 0, **more}
    status, answer, _ = post(f"{server.url}/v1/completions", body)
    assert status == 200, answer
    result: dict[str, Any] = answer
    return result


def cached(answer: Mapping[str, Any]) -> int:
    count: int = (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
    return count


def letters(chance: Random, number: int) -> str:
    """As many tokens, and never the same twice."""
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz ", k=number))


def gap(server: Vllm, chance: Random) -> None:
    """What others ask while a session is in its tool: more than the cache has room for."""
    for _ in range(GAP_REQUESTS):
        complete(server, letters(chance, 1_870), max_tokens=1)


def control(server: Vllm, op: str, **body: Any) -> Any:
    status, answer, _ = post(f"{server.url}/v1/saga/{op}", body)
    assert status == 200, answer
    return answer


def resident(server: Vllm, session: str) -> int:
    tokens: int = control(server, "stats", session=session)["resident_tokens"]
    return tokens
