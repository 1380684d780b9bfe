"""How an emulated engine is set up."""

from __future__ import annotations

from dataclasses import dataclass, field

from saga.core.cache import EvictionPolicy
from saga.policies.prefix_lru import PrefixLru
from saga.sim.hardware import EngineSpec, get_cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an emulated engine is set up. Raises ValueError that names the option."""

    host: str = "127.0.0.1"
    port: int = 8000
    model: str = "saga-emulated"
    """Listed by /v1/models; requests may name any model."""
    gpu_model: str = "16xh100-8b"
    """The named cluster whose engine this is one of."""
    kv_tokens: int | None = None
    """KV capacity, and the longest context; None: what the GPU memory gives."""
    speed: float = 1.0
    """Model seconds in a second."""
    eviction: EvictionPolicy = field(default_factory=PrefixLru)
    api_key: str | None = field(default=None, repr=False)
    max_waiting: int = 4_096
    """Requests that may wait; further ones get 503."""
    max_tool_calls: int = 8
    """Tool results since the user last spoke, after which no further tool is called."""
    chunk_us: int = 1_000
    """Tokens that come faster than this are streamed together."""
    kv_events: str | None = None
    """Where to publish what becomes of sessions' KV, as in tcp://127.0.0.1:5557; None: nowhere."""

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1e6:
            raise ValueError(f"speed={self.speed!r}: must be above 0 and at most 1e6")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port={self.port!r}: must be between 0 and 65535")
        for name in ("max_waiting", "chunk_us"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be at least 1")
        if self.kv_events is not None and not self.kv_events.startswith("tcp://"):
            raise ValueError(f"kv_events={self.kv_events!r}: must be as in tcp://127.0.0.1:5557")
        _ = self.spec

    @property
    def spec(self) -> EngineSpec:
        return get_cluster(self.gpu_model, kv_capacity_tokens=self.kv_tokens).engine
