"""Every name that travels between clients, gateway and engines, once."""

from __future__ import annotations

from typing import Final

# ---- from clients (docs/clients.md); header names are lower case, as they are compared

WORKFLOW_HEADER: Final = "x-saga-workflow-id"
SESSION_HEADER: Final = "x-saga-session-id"
PARENT_HEADER: Final = "x-saga-parent-id"
AGENT_HEADER: Final = "x-saga-agent"
STEP_HEADER: Final = "x-saga-step"
"""The place in the client's program that makes the request: a node, a task."""
NEXT_TOOL_HEADER: Final = "x-saga-next-tool"
"""What the client will call after the answer, whatever that says."""
FINAL_HEADER: Final = "x-saga-final"
DEADLINE_HEADER: Final = "x-saga-deadline-ms"
PRIORITY_HEADER: Final = "x-saga-priority"
"""How much sooner the workflow should end than others of its tenant that are like it."""
CONTEXT_HEADER: Final = "x-saga-context"
"""The same fields in one header: base64url of a JSON object."""
CONTEXT_FIELD: Final = "saga"
"""The same object as a field of the body."""
TENANT_HEADER: Final = "x-saga-tenant"

# ---- to clients

SOURCE_HEADER: Final = "x-saga-session-source"
ENGINE_HEADER: Final = "x-saga-engine"
DECISION_HEADER: Final = "x-saga-decision"

# ---- to engines

ENGINE_SESSION_HEADER: Final = "x-session-id"
SESSION_FIELD: Final = "session_id"
"""The same in a body, which SGLang reads."""
HINTS_FIELD: Final = "vllm_xargs"
HINT_SESSION: Final = "saga_session"
HINT_TTL: Final = "saga_ttl_s"
"""Seconds for which the KV should stay after the answer; 0: the workflow is over."""
HINT_SCORE: Final = "saga_score"
HINT_RETURN: Final = "saga_return_s"
"""Seconds after which the session is expected back."""
HINT_FINAL: Final = "saga_final"
HINT_PREFETCH: Final = "saga_prefetch"
"""The session did not ask: its KV is made ready before it does."""
HINTS: Final = (HINT_SESSION, HINT_TTL, HINT_SCORE, HINT_RETURN, HINT_FINAL, HINT_PREFETCH)

EMULATE: Final = "saga_emulate"
"""Body field, or JSON text in ``vllm_xargs``, that tells an emulated engine what to answer:
``{"output_tokens": n, "tool": name or null}``."""

# ---- from SAGA's own engines, over ZeroMQ: [time, [[kind, session, resident tokens], ...]]

EVENTS_TOPIC: Final = b"saga"
EVENTS_ENDPOINT: Final = "events_endpoint"
"""Field of the control route's ``stats``: where they are published."""
HOST_KV_TOKENS: Final = "host_kv_tokens"
"""Another: the size of the tier in host memory; missing where there is none."""
SHARED: Final = "shared_tier"
"""Another: names the tier behind it that several engines read; null if it has none."""
KV_STORED: Final = "stored"
"""A request of the session ended."""
KV_EVICTED: Final = "evicted"
KV_RETAINED: Final = "retained"
KV_RELEASED: Final = "released"

# ---- paths

CONTROL: Final = "/v1/saga"
"""Below it: an engine's control routes, and the gateway's own."""
CONTROL_OPS: Final = ("retain", "extend", "release", "priority", "preempt", "stats")
