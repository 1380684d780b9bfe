from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class LongestPrefix:
    """Which request? The one with the most tokens of KV at home when it was queued.

    SGLang's longest prefix match (Zheng et al., NeurIPS 2024), by what the scheduler was told of
    sessions: prefixes that sessions share are not seen.
    """

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return -min(request.prompt_tokens, request.session.resident_tokens)
