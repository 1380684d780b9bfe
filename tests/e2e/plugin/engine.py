"""vLLM's real scheduler, KV cache manager and hashing, with nothing behind them.

Only what a model would answer is made up, so that thousands of steps take a second and time stands
still until a test moves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tests.e2e.model import make_model
from tests.e2e.plugin.device import Device
from vllm.config import CacheConfig, KVTransferConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from saga import wire
from saga.engine.vllm.scheduler import RetainingAsyncScheduler, RetainingScheduler

BLOCK = 16
SECOND = 1_000_000
STOCK = {False: Scheduler, True: AsyncScheduler}
RETAINING = {False: RetainingScheduler, True: RetainingAsyncScheduler}


class HandClock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now = SECOND

    def now_us(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


@cache
def _model_config() -> ModelConfig:
    with TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        return ModelConfig(
            model=str(model), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=4_096
        )


def vllm_config(
    *,
    asynchronous: bool = False,
    policy: str = "fcfs",
    max_num_seqs: int = 16,
    additional: Mapping[str, Any] | None = None,
    offload: Mapping[str, Any] | None = None,
) -> VllmConfig:
    """``offload``: what vLLM's offloading connector is told, if there is one."""
    cache_config = CacheConfig(block_size=BLOCK, enable_prefix_caching=True)
    scheduler_config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=2_048,
        max_model_len=4_096,
        is_encoder_decoder=False,
        enable_chunked_prefill=True,
        async_scheduling=False,
        policy=policy,
    )
    config = VllmConfig(
        model_config=_model_config(),
        cache_config=cache_config,
        scheduler_config=scheduler_config,
        additional_config=dict(additional or {}),
        kv_transfer_config=None
        if offload is None
        else KVTransferConfig(
            kv_connector="OffloadingConnector",
            kv_role="kv_both",
            kv_connector_extra_config=dict(offload),
        ),
    )
    config.scheduler_config.async_scheduling = asynchronous  # what vLLM forbids on CPUs
    return config


def _group(layer: str, window: int | None) -> KVCacheGroupSpec:
    sizes: dict[str, Any] = {
        "block_size": BLOCK,
        "num_kv_heads": 1,
        "head_size": 8,
        "dtype": torch.bfloat16,
    }
    if window is None:
        return KVCacheGroupSpec([layer], FullAttentionSpec(**sizes))
    return KVCacheGroupSpec([layer], SlidingWindowSpec(sliding_window=window, **sizes))


class FakeEngine:
    """One engine without a model: requests go in, steps are made, blocks can be looked at.

    The answers count the tokens before them, so that the same prompt gives the same answer.
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        scheduler: type[Any] | None = None,
        asynchronous: bool = False,
        clock: HandClock | None = None,
        window: int | None = None,
        **config: Any,
    ) -> None:
        init_none_hash(sha256)
        self.clock = clock or HandClock()
        self.asynchronous = asynchronous
        settings = vllm_config(asynchronous=asynchronous, **config)
        settings.cache_config.num_gpu_blocks = num_blocks
        groups = [_group("full", None), *([] if window is None else [_group("sliding", window)])]
        base = scheduler or RETAINING[asynchronous]
        timed = type(base.__name__, (base,), {"clock": self.clock})  # a stock one reads none
        caches = KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=groups)
        self.scheduler: Any = timed(
            vllm_config=settings,
            kv_cache_config=caches,
            structured_output_manager=StructuredOutputManager(settings),
            block_size=BLOCK,
            hash_block_size=BLOCK,
            log_stats=True,
        )
        self.device = None if settings.kv_transfer_config is None else Device(settings, caches)
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.cached: dict[str, int] = {}
        """Prompt tokens that were found in the cache, by request."""
        self._hasher = get_request_block_hasher(BLOCK, sha256)
        self._under_way: list[Any] = []
        self._number = 0

    # ---- requests

    def submit(
        self,
        prompt: Sequence[int],
        output: int = 1,
        *,
        name: str | None = None,
        priority: int = 0,
        native_session: str | None = None,
        resumable: bool = False,
        **hints: object,
    ) -> str:
        """Hints by the end of their names: ``session``, ``ttl_s``, ``score``, ..."""
        self._number += 1
        name = name or f"request-{self._number}"
        extra = {f"saga_{key}": value for key, value in hints.items()}
        assert set(extra) <= {*wire.HINTS}, extra
        params = SamplingParams(
            max_tokens=output, ignore_eos=True, extra_args=dict(extra) if extra else None
        )
        request = Request(
            request_id=name,
            prompt_token_ids=list(prompt),
            sampling_params=params,
            pooling_params=None,
            arrival_time=self._number,
            priority=priority,
            block_hasher=self._hasher,
            resumable=resumable,
        )
        if native_session is not None:
            request.session_id = native_session
        self.scheduler.add_request(request)
        return name

    def step(self) -> None:
        """One step; with asynchronous scheduling its outcome arrives a step later."""
        self.timed_step(lambda: 0)

    def timed_step(self, clock: Callable[[], int]) -> int:
        """One step; for how long the scheduler was busy with it."""
        begin = clock()
        output = self.scheduler.schedule()
        spent = clock() - begin
        for new in output.scheduled_new_reqs:
            self.cached.setdefault(new.req_id, new.num_computed_tokens)
        if output.num_scheduled_tokens or self.device is not None:
            self._under_way.append((output, self._result(output)))
        behind = self.asynchronous and output.num_scheduled_tokens
        if len(self._under_way) > bool(behind):
            begin = clock()
            self.scheduler.update_from_output(*self._under_way.pop(0))
            spent += clock() - begin
        return spent

    def _result(self, output: Any) -> ModelRunnerOutput:
        """What a model would have answered in this step."""
        names = {name: number for number, name in enumerate(output.num_scheduled_tokens)}
        requests = [self.scheduler.requests[name] for name in names]
        return ModelRunnerOutput(
            req_ids=list(names),
            req_id_to_index=names,
            sampled_token_ids=[
                [] if one.is_prefill_chunk else [one.num_computed_tokens % 251] for one in requests
            ],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
            kv_connector_output=self.device and self.device.run(self.scheduler, output),
        )

    def drain(self, most: int = 10_000) -> None:
        """Steps until all requests have ended."""
        for _ in range(most):
            if not self.scheduler.has_requests() and not self._under_way:
                return
            self.step()
        raise AssertionError(f"still at work after {most} steps")

    def run(self, prompt: Sequence[int], output: int = 1, **more: Any) -> int:
        """Runs one request to its end; its cached prompt tokens."""
        name = self.submit(prompt, output, **more)
        self.drain()
        return self.cached[name]

    def answer(self, prompt: Sequence[int], output: int) -> list[int]:
        """Runs one request to its end; what it answered."""
        request = self.scheduler.requests[self.submit(prompt, output)]
        self.drain()
        return list(request.output_token_ids)

    def close(self) -> None:
        """For engines that offload: they share memory and files."""
        self.scheduler.shutdown()
        if self.device is not None:
            self.device.close()

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    # ---- what is where

    def free_ids(self) -> list[int]:
        return [block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()]

    def resident(self, session: str) -> int:
        tokens: int = self.scheduler.keeper.resident(session)
        return tokens

    def traffic(self, blocks: int, seed: int) -> None:
        """One request of somebody else that needs so many blocks."""
        self.run(tokens(f"traffic {seed}", blocks * BLOCK - 1))


def tokens(text: str, number: int) -> list[int]:
    """The beginning of a prompt of its own for every text."""
    chance = Random(text)
    return [chance.randrange(250) for _ in range(number)]
