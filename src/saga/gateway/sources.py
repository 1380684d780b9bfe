"""What clients send to say who they are: families of names in order of precedence, as data.

A family is what one kind of client sends. The first family that names a session decides, and all
of the identity is read from that family alone, so that ids of two clients are never mixed.
Locations and conditions are written as ``saga.gateway.locations`` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from saga import wire

Confidence = Literal["exact", "high", "medium", "low", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The names one kind of client uses; of several locations the first with a value counts."""

    name: str
    tier: str
    confidence: Confidence
    session: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    """A sub-agent within that session: its chain is ``session:agent``. A path has a parent."""
    parent_agent: tuple[str, ...] = ()
    workflow: tuple[str, ...] = ()
    """None told: the one known, else the parent's, else the hint, else the session itself."""
    hint: tuple[str, ...] = ()
    parent: tuple[str, ...] = ()
    agent_type: tuple[str, ...] = ()
    final: tuple[str, ...] = ()
    deadline_ms: tuple[str, ...] = ()
    priority: tuple[str, ...] = ()
    compaction: tuple[str, ...] = ()
    """Conditions, of which one marks the call that summarises a session."""
    when: tuple[str, ...] = ()
    """Conditions, of which one must hold; none given: always."""
    pattern: str = ""
    """What a session must look like in full; its first group is the id."""
    annotates: bool = False
    """Without a session, the rest still holds for the session that a later family names."""
    through: Literal["", "responses", "lineage"] = ""
    """The id leads to the session: by the answers given, or with the content of the messages."""


FAMILIES: Final = (
    Family(
        name="saga",
        tier="1",
        confidence="exact",
        session=(
            f"header:{wire.SESSION_HEADER}",
            f"header:{wire.CONTEXT_HEADER}.session_id",
            f"body:{wire.CONTEXT_FIELD}.session_id",
        ),
        workflow=(
            f"header:{wire.WORKFLOW_HEADER}",
            f"header:{wire.CONTEXT_HEADER}.workflow_id",
            f"body:{wire.CONTEXT_FIELD}.workflow_id",
        ),
        parent=(
            f"header:{wire.PARENT_HEADER}",
            f"header:{wire.CONTEXT_HEADER}.parent_id",
            f"body:{wire.CONTEXT_FIELD}.parent_id",
        ),
        agent_type=(
            f"header:{wire.AGENT_HEADER}",
            f"header:{wire.CONTEXT_HEADER}.agent",
            f"body:{wire.CONTEXT_FIELD}.agent",
        ),
        final=(
            f"header:{wire.FINAL_HEADER}",
            f"header:{wire.CONTEXT_HEADER}.final",
            f"body:{wire.CONTEXT_FIELD}.final",
        ),
        deadline_ms=(
            f"header:{wire.DEADLINE_HEADER}",
            f"header:{wire.CONTEXT_HEADER}.deadline_ms",
            f"body:{wire.CONTEXT_FIELD}.deadline_ms",
        ),
        priority=(
            f"header:{wire.PRIORITY_HEADER}",
            f"header:{wire.CONTEXT_HEADER}.priority",
            f"body:{wire.CONTEXT_FIELD}.priority",
        ),
        annotates=True,
    ),
    # Tier 2 are the operator's own rules: ``operator_family``.
    Family(
        name="agentic_context",
        tier="3",
        confidence="exact",
        session=("body:vllm_xargs.agentic_context.program_id",),
        workflow=("body:vllm_xargs.agentic_context.task_id",),
        parent=("body:vllm_xargs.agentic_context.parent_program_id",),
    ),
    Family(
        name="agentic_context",
        tier="3",
        confidence="exact",
        session=(
            "body:vllm_xargs.agentic_context.task_id",
            "body:vllm_xargs.agentic_context.session_id",
        ),
        agent=("body:vllm_xargs.agentic_context.agent_id",),
        parent=("body:vllm_xargs.agentic_context.parent_program_id",),
        parent_agent=("body:vllm_xargs.agentic_context.parent_agent_id",),
    ),
    Family(
        name="agent_hint",
        tier="3",
        confidence="exact",
        session=("body:agent_hint.program_id", "body:agent_hint.session_id"),
        workflow=("body:agent_hint.task_id",),
        parent=("body:agent_hint.parent_program_id", "body:agent_hint.parent_session_id"),
    ),
    Family(
        name="dynamo",
        tier="3",
        confidence="exact",
        session=("header:x-dynamo-session-id",),
        parent=("header:x-dynamo-parent-session-id",),
        final=("header:x-dynamo-session-final",),
    ),
    Family(
        name="nvext.agent_context",
        tier="3",
        confidence="exact",
        session=("body:nvext.agent_context.trajectory_id",),
        workflow=("body:nvext.agent_context.session_id",),
        parent=("body:nvext.agent_context.parent_trajectory_id",),
        agent_type=("body:nvext.agent_context.session_type_id",),
    ),
    Family(
        name="nvext.agent_context",
        tier="3",
        confidence="exact",
        session=("body:nvext.agent_context.session_id",),
        parent=("body:nvext.agent_context.parent_session_id",),
        agent_type=("body:nvext.agent_context.session_type_id",),
    ),
    Family(
        name="x-agent-hint",
        tier="3",
        confidence="exact",
        session=("header:x-agent-hint.session_id", "header:x-agent-hint.session.id"),
        parent=("header:x-agent-hint.parent_session_id", "header:x-agent-hint.session.parent_id"),
    ),
    Family(
        name="claude-code",
        tier="4a",
        confidence="high",
        session=("header:x-claude-code-session-id", "body:metadata.user_id.session_id"),
        agent=("header:x-claude-code-agent-id",),
        parent_agent=("header:x-claude-code-parent-agent-id",),
    ),
    Family(
        name="claude-code",
        tier="4a",
        confidence="high",
        session=("body:metadata.user_id",),
        pattern=r"user_.*_account_.*_session_([0-9A-Za-z-]+)",
        agent=("header:x-claude-code-agent-id",),
        parent_agent=("header:x-claude-code-parent-agent-id",),
    ),
    Family(
        name="codex",
        tier="4b",
        confidence="high",
        session=(
            "header:thread-id",
            "header:thread_id",
            "header:conversation_id",
            "header:session-id",
            "header:session_id",
        ),
        workflow=("header:session-id", "header:session_id"),
        parent=("header:x-codex-parent-thread-id",),
        agent_type=("header:x-openai-subagent",),
        compaction=(
            "header:x-codex-turn-metadata.request_kind=compaction",
            "header:x-openai-subagent=compact",
        ),
        when=(
            "header:thread-id",
            "header:user-agent=codex",
            "header:originator=codex",
            "header:x-codex-turn-metadata",
            "header:x-codex-window-id",
            "header:x-codex-parent-thread-id",
        ),
    ),
    Family(
        name="deepseek-harness",
        tier="4c",
        confidence="high",
        session=("header:x-deepseek-harness-session-id",),
        parent=("header:x-deepseek-harness-parent-session-id",),
        compaction=("header:x-deepseek-harness-compact=1",),
    ),
    Family(
        name="opencode",
        tier="4d",
        confidence="high",
        session=(
            "header:x-opencode-session",
            "header:x-session-id",
            "header:x-session-affinity",
        ),
        parent=("header:x-parent-session-id",),
        when=(
            "header:x-opencode-session",
            "header:x-session-affinity",
            "header:user-agent=opencode",
        ),
    ),
    Family(name="session_id", tier="5", confidence="high", session=("body:session_id",)),
    Family(
        name="x-session-id",
        tier="5",
        confidence="high",
        session=("header:x-session-id",),
        parent=("header:x-parent-session-id",),
    ),
    Family(
        name="vllm_xargs.session_id",
        tier="5",
        confidence="high",
        session=("body:vllm_xargs.session_id",),
    ),
    Family(
        name="litellm",
        tier="5",
        confidence="high",
        session=("header:x-litellm-session-id",),
        workflow=("header:x-litellm-trace-id",),
        parent=("header:x-parent-session-id",),
    ),
    Family(
        name="x-vendor-session-id",
        tier="5",
        confidence="medium",
        session=("vendor:session",),
    ),
    Family(
        name="helicone",
        tier="5",
        confidence="medium",
        session=("header:helicone-session-id",),
        agent=("header:helicone-session-path",),
    ),
    Family(
        name="smg-routing-key",
        tier="5",
        confidence="medium",
        session=("header:x-smg-routing-key",),
    ),
    Family(
        name="rid",
        tier="5",
        confidence="medium",
        session=("body:rid",),
        # Turn 3, retry 1 of a lineage. A bare id is that of one request.
        pattern=r"(.+?)_t\d+(?:_r\d+)?",
    ),
    Family(
        name="session_params",
        tier="5",
        confidence="medium",
        session=("body:session_params.id",),
    ),
    Family(
        name="x-conversation-id",
        tier="5",
        confidence="medium",
        session=("header:x-conversation-id",),
    ),
    Family(
        name="metadata",
        tier="5",
        confidence="medium",
        session=(
            "body:metadata.session_id",
            "body:metadata.thread_id",
            "body:metadata.conversation_id",
        ),
    ),
    Family(
        name="conversation",
        tier="6",
        confidence="medium",
        session=("body:conversation", "body:conversation.id"),
    ),
    Family(
        name="previous_response_id",
        tier="6",
        confidence="medium",
        session=("body:previous_response_id",),
        through="responses",
    ),
    Family(
        name="prompt_cache_key",
        tier="6",
        confidence="medium",
        session=("body:prompt_cache_key",),
        through="lineage",
    ),
    Family(
        name="baggage",
        tier="7",
        confidence="medium",
        session=("baggage:session.id", "baggage:gen_ai.conversation.id"),
        hint=("trace:id",),
    ),
)
LINEAGE: Final = Family(name="lineage", tier="8", confidence="low", hint=("trace:id",))
NONE: Final = Family(name="none", tier="9", confidence="none")
MAPPED: Final = ("session", "workflow", "parent")
"""What an operator's mapping may locate."""


def operator_family(extra_headers: Sequence[str], mapping: Mapping[str, str]) -> Family:
    """Tier 2: the operator's mapping of what to location, then headers that name a session.

    ValueError names a key that cannot be mapped.
    """
    for key in mapping:
        if key not in MAPPED:
            raise ValueError(f"cannot map {key!r}; what can be mapped: {', '.join(MAPPED)}")
    located = {key: (location,) for key, location in mapping.items()}
    headers = tuple(f"header:{name}" for name in extra_headers)
    return Family(
        name="operator",
        tier="2",
        confidence="exact",
        session=located.get("session", ()) + headers,
        workflow=located.get("workflow", ()),
        parent=located.get("parent", ()),
        annotates=True,
    )
