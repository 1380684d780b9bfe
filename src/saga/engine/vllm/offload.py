"""vLLM's offloading of KV to host memory, with the plugin's scores deciding what goes there and
what goes first. vLLM 0.32 and later; with a stock scheduler it is vLLM's own LRU.

``--kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
"kv_connector_extra_config": {"spec_name": "HostTierSpec", "spec_module_path":
"saga.engine.vllm.offload", "cpu_bytes_to_use": 8589934592}}'``
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    OffloadingManager,
    OffloadingWorker,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
)
from vllm.v1.kv_offload.config import OffloadingConfig
from vllm.v1.kv_offload.cpu.policies.base import CachePolicy
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from saga.clock import MonotonicClock
from saga.config import ConfigError
from saga.engine.vllm.folder import folder_id
from saga.engine.vllm.host_tier import ALWAYS, HostTier
from saga.engine.vllm.memcpy import MemcpyWorker
from saga.policies.lru import Lru

try:
    from vllm.v1.kv_offload.cpu.policies.base import ChunkStatus
except ImportError as error:
    raise ConfigError("the host tier needs vLLM 0.32 or later") from error


class SessionCachePolicy(CachePolicy):
    """Which copy goes first is a matter of the tier; this keeps what is where."""

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self.tier = HostTier(
            cache_capacity,
            Lru(),
            ALWAYS,
            tenant_share=1.0,
            clock=MonotonicClock(),
            usual_gap_s=lambda: None,
            pressure=lambda: 1.0,
        )
        """Until a scheduler brings one that knows sessions."""
        self.chunks: dict[OffloadKey, ChunkStatus] = {}
        self._keys: dict[int, OffloadKey] = {}
        """By slot."""

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        return self.chunks.get(key)

    def insert(
        self, key: OffloadKey, chunk: ChunkStatus, req_context: ReqContext | None = None
    ) -> None:
        """vLLM 0.32 does not tell whose it is, and it does not matter before the request ends."""
        self.chunks[key] = chunk
        self._keys[chunk.chunk_id] = key

    def remove(self, key: OffloadKey) -> None:
        self.tier.lost(self._forget(key))

    def touch(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        """Requests count when they end."""

    def evict(
        self, n: int, protected: set[OffloadKey]
    ) -> list[tuple[OffloadKey, ChunkStatus]] | None:
        spared = [self.chunks[key].chunk_id for key in protected if key in self.chunks]
        slots = self.tier.evict(n, spared)
        if slots is None:
            return None
        evicted = [(self._keys[slot], self.chunks[self._keys[slot]]) for slot in slots]
        for key, _ in evicted:
            self._forget(key)
        return evicted

    def clear(self) -> None:
        self.chunks.clear()
        self._keys.clear()
        self.tier.clear()

    def mark_evictable(self, key: OffloadKey) -> None:
        self.tier.idle(self.chunks[key].chunk_id)

    def mark_non_evictable(self, key: OffloadKey) -> None:
        self.tier.busy(self.chunks[key].chunk_id)

    def slots(self, keys: Iterable[OffloadKey]) -> list[int]:
        """Of those that are here."""
        return [self.chunks[key].chunk_id for key in keys if key in self.chunks]

    def _forget(self, key: OffloadKey) -> int:
        slot: int = self.chunks.pop(key).chunk_id
        del self._keys[slot]
        return slot


class SessionManager:
    """One of vLLM's managers, which is offered only what is worth a copy.

    Everything else is passed on.
    """

    def __init__(self, manager: OffloadingManager, *, kv_tokens: int) -> None:
        self._manager = manager
        self.kv_tokens = kv_tokens
        """What host memory has room for."""
        tiers = getattr(manager, "secondary_tiers", ())
        self._folder = next((tier for tier in tiers if tier.tier_type == "fs"), None)
        self.session_policy: SessionCachePolicy = getattr(manager, "primary_tier", manager)._policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    @property
    def is_shared(self) -> bool:
        """Whether other engines can read what is stored."""
        return self._folder is not None

    @cached_property
    def shared(self) -> str | None:
        """The same for all engines that can read each other's copies: a folder, and what names the
        files there (the model, the layout of its KV, the seed of the hashes, which vLLM draws only
        when the scheduler is made). None if there is no folder."""
        if self._folder is None:
            return None
        base = Path(self._folder.file_mapper.base_path)
        seed = hashlib.sha256(kv_cache_utils.NONE_HASH).hexdigest()[:12]
        return f"{folder_id(base.parent)}/{base.name}/{seed}"

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        policy, tier = self.session_policy, self.session_policy.tier
        missing = sum(key not in policy.chunks for key in keys)
        if missing and not tier.wants(req_context.req_id, missing):
            keys = [key for key in keys if key in policy.chunks]
        output = self._manager.prepare_store(keys, req_context)
        if output is not None:
            tier.num_stored += len(output.keys_to_store)
        return output

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._manager.on_request_finished(req_context)
        policy, request = self.session_policy, req_context.req_id
        policy.tier.finished(request, policy.slots(_context(req_context)))
        policy.tier.left(request)


def _context(req_context: ReqContext) -> Sequence[OffloadKey]:
    """All that the request's context consists of, from head to tail, on whichever tier."""
    positions = req_context._offload_key_positions
    return sorted(positions, key=positions.__getitem__)


class HostTierSpec(CPUOffloadingSpec):
    """Host memory of one engine."""

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        self.eviction_policy = SessionCachePolicy.__name__
        self.cache_policy_module_path = __name__
        self._sessions: SessionManager | None = None
        self._memcpy: MemcpyWorker | None = None

    def get_manager(self) -> Any:
        if self._sessions is None:
            per_group = self.num_chunks // len(self.tokens_per_block)
            tokens = per_group * self.blocks_per_chunk * min(self.tokens_per_block)
            self._sessions = SessionManager(super().get_manager(), kv_tokens=tokens)
        return self._sessions

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if not current_platform.is_cpu():
            return super().get_worker(kv_caches)
        if self._memcpy is None:
            self._memcpy = MemcpyWorker(
                kv_caches,
                blocks_per_chunk=self.blocks_per_chunk,
                num_chunks=self.num_chunks,
                region=self._region(),
            )
        return self._memcpy

    def _region(self) -> SharedOffloadRegion | None:
        """None: the process's own memory."""
        return None


class SharedTierSpec(HostTierSpec, TieringOffloadingSpec):
    """Host memory of one engine, and behind it what ``secondary_tiers`` says, such as a folder."""

    def _region(self) -> SharedOffloadRegion:
        """The scheduler's process, which reads and writes files, sees the same memory."""
        return SharedOffloadRegion(
            engine_id=self.config.engine_id,
            num_chunks=self.num_chunks,
            rank=0 if self.replicated_layout else self.config.parallel.rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
