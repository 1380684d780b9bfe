"""vLLM's schedulers, with sessions' KV kept between their requests.

Methods of vLLM are extended and none is replaced, except for the order in which free blocks go.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from inspect import signature
from operator import itemgetter
from typing import Any, ClassVar

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from saga import wire
from saga.clock import Clock, MonotonicClock
from saga.config import ConfigError, load_preset
from saga.core.policy import Policies
from saga.engine.publisher import KvPublisher
from saga.engine.vllm.events import Events, rank_endpoint
from saga.engine.vllm.hints import HintReader, Hints
from saga.engine.vllm.host_tier import ALWAYS, HostTier, StoreRule
from saga.engine.vllm.keeper import Context, Keeper
from saga.engine.vllm.options import PluginOptions, read_options
from saga.engine.vllm.queue import RetainingFreeQueue

QUEUES = ("waiting", "kv_holding_waiting", "skipped_waiting")
"""Where requests wait: the second since vLLM 0.32, the third before."""

logger = logging.getLogger(__name__)


class RetainingScheduler(Scheduler):
    """Raises ConfigError if the plugin is set up wrong."""

    clock: ClassVar[Clock] = MonotonicClock()
    policies: ClassVar[Policies | None] = None
    """Instead of those of the preset that is configured."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = read_options(os.environ, self.vllm_config.additional_config)
        policies = self.policies or load_preset(options.preset).policies
        if policies.eviction.clairvoyant:
            raise ConfigError(f"preset {options.preset} evicts by what only a simulator knows")
        if not self.kv_cache_manager.enable_caching:
            logger.warning("prefix caching is off: no KV can be kept for sessions")
        pool = self.kv_cache_manager.block_pool
        self._reader = HintReader()
        self._hints: dict[str, Hints] = {}
        """Of the requests that are here and have a session."""
        self._found: dict[str, int] = {}
        """Of the others: tokens of the prompt that were in the cache, where there were any."""
        self.keeper = Keeper(
            len(pool.blocks),
            policies,
            tenant_share=options.tenant_share,
            clock=self.clock,
            events=self._open_events(options),
        )
        self.keeper.queue = pool.free_block_queue = RetainingFreeQueue(
            pool.free_block_queue, pool.blocks, self.keeper.holdings, self.clock
        )
        connector = getattr(self.connector, "connector_scheduler", None)
        self._offload: Any = getattr(connector, "manager", None)
        """Of the host tier; None if there is none."""
        self.keeper.host = self._open_host_tier(policies, options)

    # ---- what vLLM does

    def add_request(self, request: Request) -> None:
        known = request.request_id in self.requests  # more input for a streaming request
        hints = self._read_hints(request)
        if self.keeper.host is not None and not known:
            self.keeper.host.arrived(request.request_id, hints)
        super().add_request(request)
        if hints.session is not None and not known:
            self._hints[request.request_id] = hints
            self.keeper.arrived(hints.session, hints, request.num_prompt_tokens)

    def _free_blocks(self, request: Request) -> None:
        hints = self._hints.pop(request.request_id, None)
        found = self._found.pop(request.request_id, 0)
        if hints is not None and hints.session is not None:
            self.keeper.finished(hints.session, hints, self._context(request, hints.final))
        elif found:
            self.keeper.found(self._context(request, False).up_to(found))
        super()._free_blocks(request)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        hints = self._hints.get(request.request_id)
        if hints is not None and hints.session is not None and not hints.prefetch:
            self.keeper.preempted(hints.session, self._context(request, False))
        super()._preempt_request(request, *args, **kwargs)

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        for new in scheduler_output.scheduled_new_reqs:
            has_found = new.num_computed_tokens and new.req_id not in self._hints
            if has_found and new.req_id in self.requests:
                self._found[new.req_id] = new.num_computed_tokens
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)
        self.keeper.events.flush()
        return outputs

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        done: bool = super().reset_prefix_cache(*args, **kwargs)
        if done:
            self.keeper.forget()
        return done

    def shutdown(self) -> None:
        self.keeper.events.close()
        super().shutdown()

    # ---- what it is told

    def prioritise(self, request: Request, priority: int) -> bool:
        """Lower goes first. False, and nothing changes, unless vLLM schedules by priority."""
        if self.policy is not SchedulingPolicy.PRIORITY:
            return False
        for queue in (getattr(self, name) for name in QUEUES if hasattr(self, name)):
            if request in queue:
                queue.remove_request(request)  # a heap does not notice a change
                request.priority = priority
                queue.add_request(request)
                return True
        request.priority = priority  # decides who is preempted
        return True

    def preempt(self, request: Request) -> bool:
        """It goes back behind all of its priority that wait. False if it does not run.

        Nor with a KV connector: one takes it amiss if a request that was preempted between two
        steps reads its KV back in the very next one.
        """
        running = request.status == RequestStatus.RUNNING and request in self.running
        if not running or self.connector is not None:
            return False
        self.running.remove(request)
        # It may run again in the next step, as after a reset of the prefix cache: what vLLM does
        # about output under way is done here too.
        if "drop_stale_output" in signature(self._preempt_request).parameters:
            self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        else:  # vLLM 0.26
            self._preempt_request(request, time.monotonic())
            request.async_tokens_to_discard = request.num_output_placeholders
            request.num_output_placeholders = 0
        self.prev_step_scheduled_req_ids.discard(request.request_id)
        self.waiting.remove_request(request)
        request.arrival_time = time.time()  # goes last of its priority
        self.waiting.add_request(request)
        return True

    def stats(self) -> dict[str, Any]:
        """The engine's figures; tokens and blocks."""
        pool, groups = self.kv_cache_manager.block_pool, self.kv_cache_config.kv_cache_groups
        num_running, num_waiting = self.get_request_counts()
        num_blocks = len(pool.blocks) - 1  # one is never used
        block_size = min((group.kv_cache_spec.block_size for group in groups), default=0)
        kept = self.keeper.stats()
        return {
            "num_requests_running": num_running,
            "num_requests_waiting": num_waiting,
            "max_num_seqs": self.max_num_running_reqs,
            "num_blocks": num_blocks,
            "used_blocks": num_blocks - pool.get_num_free_blocks(),
            "kv_capacity_tokens": num_blocks // max(1, len(groups)) * block_size,
            "retained_tokens": kept["retained_blocks"] // max(1, len(groups)) * block_size,
            **kept,
            **self._host_stats(),
        }

    # ---- inside

    def _open_host_tier(self, policies: Policies, options: PluginOptions) -> HostTier | None:
        """None unless KV is offloaded by one of the plugin's own specs."""
        policy = getattr(self._offload, "session_policy", None)
        if policy is None:
            return None
        rule = StoreRule(
            min_gap_s=options.offload_min_gap_s, min_pressure=options.offload_min_pressure
        )
        tier = policy.tier = HostTier(
            policy.cache_capacity,
            policies.eviction,
            ALWAYS if self._offload.is_shared else rule,
            tenant_share=options.tenant_share,
            clock=self.clock,
            usual_gap_s=self.keeper.habits.usual_gap_s,
            pressure=self._pressure,
        )
        return tier

    def _pressure(self) -> float:
        """The part of the blocks that is used, or free and claimed by sessions."""
        pool = self.kv_cache_manager.block_pool
        plain: int = pool.get_num_free_blocks() - self.keeper.holdings.num_held
        return 1.0 - plain / len(pool.blocks)

    def _host_stats(self) -> dict[str, Any]:
        if self.keeper.host is None:
            return {}
        where = {wire.HOST_KV_TOKENS: self._offload.kv_tokens, wire.SHARED: self._offload.shared}
        return where | self.keeper.host.stats()

    def _read_hints(self, request: Request) -> Hints:
        params = request.sampling_params
        extra = None if params is None else params.extra_args
        return self._reader.read(extra, getattr(request, "session_id", None))

    def _context(self, request: Request, final: bool) -> Context:
        groups = self.kv_cache_manager.get_blocks(request.request_id).blocks
        managers = self.kv_cache_manager.coordinator.single_type_managers
        if len(groups) == 1 and groups[0] and not groups[0][0].is_null:
            blocks, ends = _full_blocks(groups[0], managers[0].block_size)
        else:
            blocks, ends = self._scattered_blocks(groups, managers)
        return Context(
            blocks=[block.block_id for block in blocks],
            ends=ends,
            own=[block.block_id for block in blocks if block.ref_cnt == 1] if final else (),
            tokens=request.num_tokens,
        )

    def _scattered_blocks(
        self, groups: Sequence[Sequence[KVCacheBlock]], managers: Sequence[Any]
    ) -> tuple[Sequence[KVCacheBlock], Sequence[int]]:
        """Those of several groups in one chain, ordered by where in the context they end.

        Groups can have pools of their own, whose blocks are numbered alike: they are left out.
        """
        pool = self.kv_cache_manager.block_pool
        placed = [
            (number * manager.block_size, block)
            for manager, group in zip(managers, groups, strict=True)
            for number, block in enumerate(group, 1)
            if block.block_hash is not None
            and not block.is_null
            and getattr(block, "pool", None) in (None, pool)
        ]
        placed.sort(key=itemgetter(0))
        return [block for _, block in placed], [end for end, _ in placed]

    def _open_events(self, options: PluginOptions) -> Events:
        """Raises OSError if the endpoint cannot be had."""
        if options.events_endpoint is None:
            return Events(None)
        rank = self.vllm_config.parallel_config.data_parallel_index
        return Events(KvPublisher(rank_endpoint(options.events_endpoint, rank)))


class RetainingAsyncScheduler(RetainingScheduler, AsyncScheduler):
    """The same on vLLM's asynchronous scheduler."""


def _full_blocks(
    blocks: Sequence[KVCacheBlock], block_size: int
) -> tuple[Sequence[KVCacheBlock], Sequence[int]]:
    """All but the last ones, which have no hash yet."""
    count = len(blocks)
    while count and blocks[count - 1].block_hash is None:
        count -= 1
    return blocks[:count], range(block_size, block_size * count + 1, block_size)
