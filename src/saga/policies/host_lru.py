from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, SessionView


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLru:
    """Move to host memory or drop? All computed KV is copied there, least recently used out.

    vLLM's OffloadingConnector with its LRU. Engines without host memory copy nothing.
    """

    store: bool = True

    def offload_now(self, session: SessionView, cluster: ClusterView) -> bool:
        return False
