"""Copies between the device's blocks and a host tier where the device is the CPU.

vLLM's own worker is for GPUs: it needs streams and pinned memory. Here both sides are memory of one
process, so a copy is done when the call returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from vllm.v1.kv_offload.base import (
    BlockIDsLoadStoreSpec,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion


class MemcpyWorker(OffloadingWorker):
    """``region``: where the copies are, if another process reads them too; it is closed at last."""

    def __init__(
        self,
        kv_caches: CanonicalKVCaches,
        *,
        blocks_per_chunk: int,
        num_chunks: int,
        region: SharedOffloadRegion | None = None,
    ) -> None:
        self._blocks_per_chunk = blocks_per_chunk
        self._region = region
        self._groups = [
            sorted({ref.tensor_idx for ref in refs}) for refs in kv_caches.group_data_refs
        ]
        self._device: list[torch.Tensor] = []
        self._host: list[torch.Tensor] = []
        for cache in kv_caches.tensors:
            page = cache.page_size_bytes
            chunk = page * blocks_per_chunk
            if region is None:
                copies = torch.zeros((num_chunks, chunk), dtype=torch.int8)
            else:
                copies = region.create_next_worker_view(chunk)
            self._device.append(cache.tensor.view(torch.int8).view(-1, page))
            self._host.append(copies.view(num_chunks, blocks_per_chunk, page))
        self._finished: list[TransferResult] = []

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        begin, size = time.perf_counter(), 0
        for tensor, blocks, chunks, parts in self._places(src_spec, dst_spec):
            pages = self._device[tensor][blocks]
            self._host[tensor][chunks, parts] = pages
            size += pages.numel()
        return self._done(job_id, size, begin)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        begin, size = time.perf_counter(), 0
        for tensor, blocks, chunks, parts in self._places(dst_spec, src_spec):
            pages = self._host[tensor][chunks, parts]
            self._device[tensor][blocks] = pages
            size += pages.numel()
        return self._done(job_id, size, begin)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Whatever was submitted is done."""

    def shutdown(self) -> None:
        self._host.clear()
        if self._region is not None:
            self._region.cleanup()
            self._region = None

    def _done(self, job_id: int, size: int, begin: float) -> bool:
        seconds = time.perf_counter() - begin
        self._finished.append(TransferResult(job_id, True, size, seconds))
        return True

    def _places(
        self, device: GPULoadStoreSpec, host: LoadStoreSpec
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Tensors, with the blocks there, and for each block its chunk and its place in that.

        The first block of a group can stand in the middle of its first chunk.
        """
        assert isinstance(host, BlockIDsLoadStoreSpec)
        blocks, chunks = _indices(device.block_ids), _indices(host.block_ids)
        per_chunk = self._blocks_per_chunk
        block, chunk = 0, 0
        for tensors, size, first in zip(
            self._groups, device.group_sizes, device.block_indices, strict=True
        ):
            if not size:
                continue
            places = torch.arange(size) + first % per_chunk
            last_chunk = chunk + int(places[-1]) // per_chunk + 1
            for tensor in tensors:
                yield (
                    tensor,
                    blocks[block : block + size],
                    chunks[chunk:last_chunk][places // per_chunk],
                    places % per_chunk,
                )
            block, chunk = block + size, last_chunk


def _indices(numbers: Sequence[int]) -> torch.Tensor:
    return torch.as_tensor(numbers, dtype=torch.long)
