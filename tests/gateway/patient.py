"""An engine of vLLM's shape from which things can be taken away, and its examination."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from tests.gateway.kv import Engine as Publisher
from tests.gateway.kv import stored
from tests.gateway.servers import Handler, serve

from saga.gateway.doctor import Diagnosis, diagnose
from saga.gateway.findings import Finding
from saga.gateway.upstream import Timeouts, Upstream

QUICK = Timeouts(connect_s=5.0, first_byte_s=0.5, chunk_s=5.0, total_s=5.0)
PATIENT = Timeouts(connect_s=5.0, first_byte_s=5.0, chunk_s=5.0, total_s=5.0)
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
METRICS = """\
vllm:num_requests_running 0
vllm:num_requests_waiting 0
vllm:kv_cache_usage_perc 0.5
vllm:prefix_cache_hits_total 1
vllm:prefix_cache_queries_total 2
vllm:cache_config_info{block_size="32",enable_prefix_caching="CACHING",num_gpu_blocks="400"} 1.0
"""
TIERS = {"host_kv_tokens": 6_400, "shared_tier": "folder/model/seed"}


@dataclass
class Vllm:
    """One with everything, if nothing is taken away."""

    models: Sequence[str] = ("tiny",)
    owner: str = "vllm"
    metrics: str = METRICS
    caches: bool = True
    tells_cached: bool = True
    tells_usage: bool = True
    has_plugin: bool = True
    reads_hints: bool = True
    tiers: dict[str, Any] = field(default_factory=lambda: dict(TIERS))
    """What the plugin tells of them."""
    names_sessions: bool = True
    deaf: int = 0
    """Requests whose events are lost."""
    events: Publisher | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    """Of paths that answer with an error."""
    said: bytes = b'{"error": {"message": "no such thing"}}'
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    """Path, headers (names in lower case) and body of each POST."""
    sessions: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    blocks: Iterable[int] = field(default_factory=itertools.count)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path in self.statuses:
            return web.Response(status=self.statuses[path], body=self.said)
        match path:
            case "/v1/models":
                listed = [{"id": model, "owned_by": self.owner} for model in self.models]
                return web.json_response({"data": listed})
            case "/version":
                return web.json_response({"version": "0.33.0"})
            case "/metrics" if self.metrics:
                return web.Response(text=self.metrics.replace("CACHING", str(self.caches)))
            case "/kv_event_sources" if self.events is not None:
                return web.json_response({"0": {"endpoint": self.events.endpoint}})
        if request.method != "POST":
            return web.Response(status=404)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((path, headers, await request.json()))
        return self.post(*self.asked[-1])

    def post(self, path: str, headers: dict[str, str], body: Any) -> web.Response:
        if path in (CHAT, COMPLETIONS):
            return self.answer(headers["x-session-id"], body)
        if path.startswith("/v1/saga/") and self.has_plugin:
            if "session" not in body:
                figures = {"max_num_seqs": 16, "retained_tokens": 7, "up": True}
                return web.json_response({**figures, **self.tiers})
            return web.Response(status=200 if body["session"] in self.sessions else 404)
        return web.Response(status=404)

    def answer(self, session: str, body: Any) -> web.Response:
        prompt = str(body.get("messages", body.get("prompt")))
        usage: dict[str, Any] = {"prompt_tokens": 96, "completion_tokens": 1}
        if self.tells_cached:
            seen = self.caches and prompt in self.prompts
            usage["prompt_tokens_details"] = {"cached_tokens": 64 if seen else 0}
        self.prompts.add(prompt)
        if self.reads_hints:
            self.sessions.add(body.get("vllm_xargs", {}).get("saga_session", ""))
        if self.events is not None and not self.deaf:
            name = session if self.names_sessions else None
            self.events.say(stored([next(iter(self.blocks))], session_id=name))
        self.deaf = max(0, self.deaf - 1)
        told = {"usage": usage} if self.tells_usage else {}
        if not body.get("stream"):
            return web.json_response({"id": "c", "choices": [], **told})
        events = [{"choices": [{}]}, *([told] if told else [])]
        text = "".join(f"data: {msgspec.json.encode(event).decode()}\n\n" for event in events)
        return web.Response(text=text + "data: [DONE]\n\n", content_type="text/event-stream")


def diagnosed(
    server: Handler | Vllm, key: str | None = None, timeouts: Timeouts = PATIENT, **options: Any
) -> Diagnosis:
    async def run() -> Diagnosis:
        async with serve(server.handle if isinstance(server, Vllm) else server) as url:
            return await examined(url, key, timeouts, **options)

    return asyncio.run(run())


async def examined(
    url: str, key: str | None = None, timeouts: Timeouts = PATIENT, **options: Any
) -> Diagnosis:
    async with Upstream() as upstream:
        given = {"events_s": 1.0, **options}
        return await diagnose(upstream, url, key, timeouts=timeouts, **given)


def answers(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.what: finding.answer for finding in diagnosis.findings}


def of(diagnosis: Diagnosis, what: str) -> Finding:
    (found,) = [finding for finding in diagnosis.findings if finding.what == what]
    return found
