"""The memory of a device without a model, with vLLM's own offloading connector at work on it."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput


class Device:
    """What a model would compute of a token is the token. Whatever a request reads is compared."""

    def __init__(self, config: VllmConfig, caches: KVCacheConfig) -> None:
        self._connector: Any = KVConnectorFactory.create_connector(
            config, KVConnectorRole.WORKER, caches
        )
        spec = caches.kv_cache_groups[0].kv_cache_spec
        self._block_size = spec.block_size
        width = spec.page_size_bytes // spec.block_size // 2
        shape = (caches.num_blocks, 1, spec.block_size, width)
        self._memory = torch.zeros(shape, dtype=torch.bfloat16)
        (layer,) = caches.kv_cache_groups[0].layer_names
        self._connector.register_kv_caches({layer: self._memory})

    def run(self, scheduler: Any, output: Any) -> KVConnectorOutput:
        """One step, in the order of vLLM's model runner."""
        connector = self._connector
        connector.bind_connector_metadata(output.kv_connector_metadata)
        connector.handle_preemptions(output.kv_connector_metadata)
        for name, count in output.num_scheduled_tokens.items():
            self._compute(scheduler, name, count)
        connector.start_load_kv(None)
        connector.wait_for_save()
        sent, received = connector.get_finished(output.finished_req_ids)
        done = KVConnectorOutput(
            finished_sending=sent,
            finished_recving=received,
            kv_connector_worker_meta=connector.build_connector_worker_meta(),
        )
        connector.clear_connector_metadata()
        return done

    @property
    def spec(self) -> Any:
        return self._connector.connector_worker.spec

    def close(self) -> None:
        self._connector.shutdown()

    def _compute(self, scheduler: Any, name: str, count: int) -> None:
        request = scheduler.requests[name]
        end = request.num_computed_tokens
        (blocks,) = scheduler.kv_cache_manager.get_block_ids(name)
        places = torch.arange(end)
        rows = torch.tensor(blocks)[places // self._block_size]
        said = torch.tensor(request.all_token_ids[:end], dtype=torch.bfloat16)
        read = self._memory[rows, 0, places % self._block_size]
        fresh = max(0, end - count)
        assert torch.equal(read[:fresh], said[:fresh, None].expand_as(read[:fresh])), name
        self._memory[rows[fresh:], 0, places[fresh:] % self._block_size] = said[fresh:, None]
