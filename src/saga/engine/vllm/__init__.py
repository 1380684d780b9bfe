"""The plugin for vLLM 0.26 to 0.33: KV of sessions stays while they are in a tool.

``VLLM_PLUGINS=saga,saga_endpoint vllm serve ... --scheduler-cls saga.engine.vllm.Scheduler``. The
scheduler alone obeys the hints in requests; the plugins bring the control routes. Nothing here
imports vLLM before vLLM has asked for it.
"""

from __future__ import annotations

from typing import Any, Final

METHOD: Final = "saga_control"
"""By this name vLLM's engine can be told what is in a control message."""


def Scheduler(**options: Any) -> Any:
    """vLLM's own scheduler, the asynchronous one if that is wanted, that keeps sessions' KV.

    Raises ConfigError if the plugin is set up wrong.
    """
    from saga.engine.vllm.scheduler import RetainingAsyncScheduler, RetainingScheduler

    asynchronous = options["vllm_config"].scheduler_config.async_scheduling
    return (RetainingAsyncScheduler if asynchronous else RetainingScheduler)(**options)


def register() -> None:
    """Entry point ``vllm.general_plugins``, called once or more in every process of vLLM.

    Adds the method to vLLM's engine by which control messages arrive.
    """
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, METHOD, _control)


def endpoint() -> Any:
    """Entry point ``vllm.endpoint_plugins``: the control routes of the API server."""
    from saga.engine.vllm.endpoint import ControlEndpoint

    return ControlEndpoint()


def _control(engine: Any, op: str, body: dict[str, Any]) -> dict[str, Any]:
    """Called by name, between two steps of the engine."""
    from saga.engine.vllm.control import answer

    return answer(engine.scheduler, op, body)
