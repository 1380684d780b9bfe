"""Everything of vLLM that the plugin touches, by name: what is gone is told in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm
from packaging.version import Version
from tests.e2e.plugin.engine import BLOCK, FakeEngine, tokens

from saga.engine.vllm.scheduler import QUEUES

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
OFFLOAD = "vllm.v1.kv_offload"
CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.offloading"
QUEUE = "vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue"
CORE = "vllm.v1.engine.core:EngineCore"
CLIENT = "vllm.v1.engine.core_client:AsyncMPClient"

METHODS: dict[str, dict[str, list[str]]] = {
    SCHEDULER: {
        "add_request": ["request"],
        "_free_blocks": ["request"],
        "_preempt_request": ["request", "timestamp"],
        "update_from_output": ["scheduler_output"],
        "reset_prefix_cache": [],
        "shutdown": [],
        "get_request_counts": [],
    },
    QUEUE: {
        "popleft": [],
        "popleft_n": ["n"],
        "remove": ["block"],
        "append": ["block"],
        "append_n": ["blocks"],
        "prepend_n": ["blocks"],
        "get_all_free_blocks": [],
        "iter_blocks_after": ["cursor"],
    },
    "vllm.v1.core.kv_cache_manager:KVCacheManager": {"get_blocks": ["request_id"]},
    "vllm.v1.core.block_pool:BlockPool": {"get_num_free_blocks": []},
    "vllm.v1.core.sched.request_queue:RequestQueue": {
        "add_request": ["request"],
        "remove_request": ["request"],
    },
    CLIENT: {"call_utility_async": ["method"]},
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin": {
        "attach_router": ["app"],
        "init_state": ["engine_client", "state", "args"],
    },
}
"""Methods, with the parameters that they are called with or that must be understood."""

TIERS: dict[str, dict[str, list[str]]] = {
    f"{OFFLOAD}.cpu.policies.base:CachePolicy": {
        "__init__": ["cache_capacity"],
        "get": ["key"],
        "insert": ["key", "chunk"],
        "remove": ["key"],
        "touch": ["keys", "req_context"],
        "on_store_miss": ["keys", "req_context"],
        "evict": ["n", "protected"],
        "clear": [],
        "mark_evictable": ["key"],
        "mark_non_evictable": ["key"],
    },
    f"{OFFLOAD}.base:OffloadingManager": {
        "prepare_store": ["keys", "req_context"],
        "on_request_finished": ["req_context"],
    },
    f"{OFFLOAD}.base:OffloadingSpec": {"get_manager": [], "get_worker": ["kv_caches"]},
    f"{OFFLOAD}.base:OffloadingWorker": {
        "submit_store": ["job_id", "src_spec", "dst_spec"],
        "submit_load": ["job_id", "src_spec", "dst_spec"],
        "get_finished": [],
        "wait": ["job_ids"],
        "shutdown": [],
    },
    f"{OFFLOAD}.base:TransferResult": {
        "__init__": ["job_id", "success", "transfer_size", "transfer_time"]
    },
    f"{OFFLOAD}.cpu.shared_offload_region:SharedOffloadRegion": {
        "__init__": ["engine_id", "num_chunks", "rank", "kv_bytes_per_chunk", "cpu_page_size"],
        "create_next_worker_view": ["tensor_page_size"],
        "cleanup": [],
    },
    f"{OFFLOAD}.tiering.spec:TieringOffloadingSpec": {"__init__": ["config"]},
    f"{CONNECTOR}.scheduler:OffloadingConnectorScheduler": {"on_new_request": ["request"]},
}
"""The same of what the host tier touches."""

TIER_ATTRIBUTES: dict[str, list[str]] = {
    "scheduler": ["connector.connector_scheduler.manager.session_policy.tier"],
    "spec": [
        "eviction_policy",
        "cache_policy_module_path",
        "num_chunks",
        "tokens_per_block",
        "blocks_per_chunk",
        "kv_bytes_per_chunk",
        "cpu_page_size_per_worker",
        "replicated_layout",
        "config.engine_id",
        "config.parallel.rank",
    ],
    "manager": ["primary_tier._policy.chunks", "secondary_tiers"],
    "folder": ["tier_type", "file_mapper.base_path"],
    "context": ["req_id", "_offload_key_positions"],
    "device": ["block_ids", "group_sizes", "block_indices"],
    "caches": ["tensors", "group_data_refs"],
    "cache": ["tensor", "page_size_bytes"],
    "layer": ["tensor_idx"],
    "hashes": ["NONE_HASH"],
    "platform": ["is_cpu"],
    "chunk": ["chunk_id"],
}

ATTRIBUTES: dict[str, list[str]] = {
    "scheduler": [
        "requests",
        "running",
        "waiting",
        "policy",
        "vllm_config.additional_config",
        "vllm_config.parallel_config.data_parallel_index",
        "kv_cache_config.kv_cache_groups",
        "prev_step_scheduled_req_ids",
        "max_num_running_reqs",
        "kv_cache_manager.enable_caching",
        "kv_cache_manager.block_pool.blocks",
        "kv_cache_manager.block_pool.free_block_queue.num_free_blocks",
        "kv_cache_manager.block_pool.free_block_queue.fake_free_list_head",
        "kv_cache_manager.block_pool.free_block_queue.fake_free_list_tail",
        "kv_cache_manager.coordinator.single_type_managers",
    ],
    "output": ["scheduled_new_reqs"],
    "new": ["req_id", "num_computed_tokens"],
    "manager": ["block_size"],
    "group": ["kv_cache_spec.block_size"],
    "block": ["block_id", "block_hash", "ref_cnt", "is_null"],
    "request": [
        "request_id",
        "status",
        "priority",
        "arrival_time",
        "num_tokens",
        "num_prompt_tokens",
        "num_output_placeholders",
        "sampling_params.extra_args",
    ],
}
"""What is read or written of the objects of a running engine."""


def named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


needs_tiers = pytest.mark.skipif(
    Version(vllm.__version__) < Version("0.32"), reason="the host tier needs vLLM 0.32"
)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *((path, method) for path, all_ in METHODS.items() for method in all_),
        *(
            pytest.param(path, method, marks=needs_tiers)
            for path, all_ in TIERS.items()
            for method in all_
        ),
    ],
)
def test_a_method_is_there_and_takes_what_it_is_given(path: str, method: str) -> None:
    function = getattr(named(path), method, None)
    assert function is not None, f"vLLM {vllm.__version__} has no {path}.{method} any more"
    parameters = list(inspect.signature(function).parameters)
    expected = {**METHODS, **TIERS}[path][method]
    taken = parameters[1 : len(expected) + 1]
    assert taken == expected, f"vLLM {vllm.__version__}: {path}.{method} takes {parameters}"


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    engine = FakeEngine(64)
    engine.submit(tokens("b", 3 * BLOCK), 5, session="t/b")
    scheduler = engine.scheduler
    output = scheduler.schedule()
    [new] = output.scheduled_new_reqs
    engine = FakeEngine(64)
    engine.submit(tokens("a", 3 * BLOCK), 5, session="t/a")
    engine.step()
    scheduler = engine.scheduler
    return {
        "scheduler": scheduler,
        "output": output,
        "new": new,
        "manager": scheduler.kv_cache_manager.coordinator.single_type_managers[0],
        "group": scheduler.kv_cache_config.kv_cache_groups[0],
        "block": engine.pool.blocks[0],
        "request": scheduler.running[0],
    }


@pytest.mark.parametrize(
    ("what", "path"), [(what, path) for what, all_ in ATTRIBUTES.items() for path in all_]
)
def test_an_attribute_is_there(objects: dict[str, Any], what: str, path: str) -> None:
    value = objects[what]
    for name in path.split("."):
        assert hasattr(value, name), f"vLLM {vllm.__version__}: {what}.{path} has no {name}"
        value = getattr(value, name)


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    from vllm.platforms import current_platform
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.kv_offload.base import (
        CanonicalKVCacheRef,
        CanonicalKVCaches,
        CanonicalKVCacheTensor,
        GPULoadStoreSpec,
        ReqContext,
    )

    folder = {"type": "fs", "root_dir": str(tmp_path_factory.mktemp("tier"))}
    engine = FakeEngine(
        64,
        offload={
            "spec_name": "SharedTierSpec",
            "spec_module_path": "saga.engine.vllm.offload",
            "cpu_bytes_to_use": 64 << 12,
            "secondary_tiers": [folder],
        },
    )
    engine.run(tokens("a", 3 * BLOCK), 5, session="t/a")
    engine.traffic(1, 0)
    assert engine.device is not None
    manager = engine.scheduler.connector.connector_scheduler.manager
    yield {
        "scheduler": engine.scheduler,
        "spec": engine.device.spec,
        "manager": manager,
        "folder": manager.secondary_tiers[0],
        "context": ReqContext("r"),
        "device": GPULoadStoreSpec([0], group_sizes=[1], block_indices=[0]),
        "caches": CanonicalKVCaches([], []),
        "cache": CanonicalKVCacheTensor(torch.zeros(1), 4),
        "layer": CanonicalKVCacheRef(0, 4),
        "hashes": kv_cache_utils,
        "platform": current_platform,
        "chunk": next(iter(manager.session_policy.chunks.values())),
    }
    engine.close()


@needs_tiers
@pytest.mark.parametrize(
    ("what", "path"), [(what, path) for what, all_ in TIER_ATTRIBUTES.items() for path in all_]
)
def test_an_attribute_of_the_tiers_is_there(tiers: dict[str, Any], what: str, path: str) -> None:
    test_an_attribute_is_there(tiers, what, path)


def test_blocks_are_numbered_as_they_stand_in_the_pool(objects: dict[str, Any]) -> None:
    blocks = objects["scheduler"].kv_cache_manager.block_pool.blocks
    assert [block.block_id for block in blocks] == list(range(len(blocks)))


def test_waiting_requests_are_in_the_queues_that_are_known(objects: dict[str, Any]) -> None:
    queue = named("vllm.v1.core.sched.request_queue:RequestQueue")
    found = {name for name, value in vars(objects["scheduler"]).items() if isinstance(value, queue)}
    assert found <= set(QUEUES), f"vLLM {vllm.__version__} has more queues: {found - set(QUEUES)}"
    assert "waiting" in found


def test_output_under_way_of_a_preempted_request_is_dealt_with(objects: dict[str, Any]) -> None:
    parameters = inspect.signature(named(SCHEDULER)._preempt_request).parameters
    old = hasattr(objects["request"], "async_tokens_to_discard")
    assert ("drop_stale_output" in parameters) != old, f"vLLM {vllm.__version__} has a third way"


def test_nobody_keeps_vllms_own_queue(objects: dict[str, Any]) -> None:
    """The queue is exchanged after the scheduler is made, so nothing may refer to the first one."""
    assert named(CORE)
    root = Path(vllm.__file__).parent / "v1"
    found = [
        f"{file.relative_to(root)}:{number}"
        for file in root.rglob("*.py")
        if file.name != "block_pool.py"
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if "free_block_queue" in line
    ]
    files = {place.rpartition(":")[0] for place in found}
    known = {"simple_kv_offload/manager.py", "core/single_type_kv_cache_manager.py"}
    assert files <= known, f"vLLM {vllm.__version__} uses the queue in {found}"
