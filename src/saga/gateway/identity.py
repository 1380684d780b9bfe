"""Whose step a request is: workflow, session and parent, and what clients tell beside them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar
from urllib.parse import unquote

from msgspec import Raw

from saga.gateway.body import Fields, items
from saga.gateway.claims import Claim, Finder, Finders
from saga.gateway.lineage import Followed, Lineages
from saga.gateway.locations import MAX_ID, Request, count, identifier
from saga.gateway.memory import TenantLru
from saga.gateway.sources import FAMILIES, LINEAGE, NONE, Confidence, operator_family

T = TypeVar("T")

CLASS_HEADER: Final = "x-claude-code-request-class"
AGENT_TYPE_HEADER: Final = "x-claude-code-agent-type"
DURATIONS_HEADER: Final = "x-claude-code-prev-tool-durations"
COMPACTION_HEADER: Final = "x-claude-code-compaction"
COMPACTED_HEADER: Final = "x-claude-code-context-compacted"
RETRY_HEADER: Final = "x-stainless-retry-count"
KINDS: Final = ("main", "subagent", "workflow", "compaction", "auxiliary")
MAX_TOOLS: Final = 32
MAX_DURATIONS: Final = 4_096


class Identity(NamedTuple):
    """Ids are as the client wrote them, unique within its tenant only."""

    workflow: str
    session: str
    parent: str | None
    """The session that this one works for."""
    source: str
    """The family of names that told the session."""
    confidence: Confidence
    agent_type: str | None = None
    kind: str = "main"
    """One of ``KINDS``; an auxiliary call says nothing about its session's next step."""
    final: bool = False
    """The client says that no further step will come."""
    context_compacted: bool = False
    """The session's earlier messages will not be sent again."""
    retry: bool = False
    """The client asks for the same step again."""
    tools: tuple[tuple[str, int], ...] = ()
    """Tools run since the last step and how long each took, in microseconds."""
    deadline_us: int | None = None
    """From the arrival on."""
    priority: float | None = None
    """Of its workflow."""


class Asked(NamedTuple):
    tenant: str
    request: Request
    api: str
    now_us: int
    retry: bool


class Known(NamedTuple):
    """What was said of a session before."""

    workflow: str
    parent: str | None


class Identifier:
    """Tells whose step each request is, by the first family of names that knows.

    What it remembers of a tenant's sessions is used for that tenant alone and bounded by
    ``max_sessions``. ``extra_headers`` name sessions and ``mapping`` locates what its keys say
    (``sources.MAPPED``), both ahead of every name built in but SAGA's own; ValueError if that
    cannot be read.
    """

    def __init__(
        self,
        *,
        extra_headers: Sequence[str] = (),
        mapping: Mapping[str, str] = MappingProxyType({}),
        max_sessions: int = 100_000,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._new_id = new_id
        self._known: TenantLru[str, Known] = TenantLru(max_sessions)
        self._responses: TenantLru[str, str] = TenantLru(max_sessions)
        self._lineages = Lineages(max_sessions, new_id)
        self.configure(extra_headers=extra_headers, mapping=mapping)

    def configure(self, *, extra_headers: Sequence[str], mapping: Mapping[str, str]) -> None:
        """Takes over new rules of the operator; what is remembered stays."""
        operator = operator_family(extra_headers, mapping)
        own = [family for family in FAMILIES if family.tier == "1"]
        rules = [operator] if extra_headers or mapping else []
        others = [family for family in FAMILIES if family.tier != "1"]
        self._finders = Finders(Finder(family) for family in (*own, *rules, *others))
        self._lineage = Finder(LINEAGE)

    def identify(
        self, tenant: str, headers: Mapping[str, str], fields: Fields, *, api: str, now_us: int
    ) -> Identity:
        """The identity of a request; header names are lower case. Never fails."""
        request = Request(headers, fields)
        retry = bool(count(headers.get(RETRY_HEADER)))
        asked = Asked(tenant, request, api, now_us, retry)
        notes: list[Claim] = []
        for finder in self._finders.that_may_find(request):
            claim = finder.find(request)
            if claim is None:
                continue
            if claim.session is None:
                notes.append(claim)
                continue
            resolved = self._resolve(asked, claim)
            if resolved is not None:
                break
        else:
            resolved = self._infer(asked, _first(note.workflow for note in notes))
        for note in reversed(notes):
            resolved = resolved.annotated(note)
        return self._settle(asked, resolved)

    def answered(self, tenant: str, session: str, response_id: str) -> None:
        """The id of an answer, with which a client of the Responses API may go on."""
        if identifier(response_id) is not None:
            self._responses.put(tenant, response_id, session)

    def called(self, tenant: str, identity: Identity, call_id: str) -> None:
        """A request's answer calls a tool; who says its result goes on with that session."""
        if identity.source == LINEAGE.name:
            self._lineages.called(tenant, identity.session, call_id)

    def forget(self, tenant: str, session: str) -> None:
        """Nothing leads to the session any more but its own name."""
        self._known.pop(tenant, session)
        self._lineages.forget(tenant, session)

    def _resolve(self, asked: Asked, claim: Claim) -> Claim | None:
        """Puts the session for an id that only leads to one; None if it does not."""
        assert claim.session is not None
        if claim.family.through == "responses":
            session = self._responses.get(asked.tenant, claim.session)
            if session is None or self._known.get(asked.tenant, session) is None:
                return None
            self._lineages.go_on(asked.tenant, session)
            return claim._replace(session=session)
        if claim.family.through == "lineage":
            key = claim.session
            followed = self._follow(asked, key, name=key) or Followed(key)
            return claim._replace(session=followed.session, parent=followed.parent, workflow=key)
        return claim

    def _infer(self, asked: Asked, workflow: str | None) -> Claim:
        """What the messages tell, since no name did."""
        followed = self._follow(asked, workflow or "")
        if followed is None:
            return Claim(NONE, None)
        hint = self._lineage.hint(asked.request)
        return Claim(LINEAGE, followed.session, parent=followed.parent, hint=hint)

    def _follow(self, asked: Asked, group: str, name: str | None = None) -> Followed | None:
        fields, headers = asked.request.fields, asked.request.headers
        agent = headers.get("user-agent", "").partition("/")[0][:MAX_ID].lower()
        return self._lineages.follow(
            asked.tenant,
            (asked.api, fields.model or "", agent, group),
            (fields.system, fields.instructions),
            _messages(fields, asked.api),
            now_us=asked.now_us,
            retry=asked.retry,
            name=name,
        )

    def _settle(self, asked: Asked, claim: Claim) -> Identity:
        session = claim.session or self._new_id()
        workflow, parent = self._relate(asked.tenant, session, claim)
        headers = asked.request.headers
        durations = headers.get(DURATIONS_HEADER)
        return Identity(
            workflow=workflow,
            session=session,
            parent=parent,
            source=claim.family.name,
            confidence=claim.family.confidence,
            agent_type=claim.agent_type or identifier(headers.get(AGENT_TYPE_HEADER)),
            kind=_kind(headers, claim, parent),
            final=claim.final,
            context_compacted=COMPACTED_HEADER in headers,
            retry=asked.retry,
            tools=() if durations is None else tool_durations(durations),
            deadline_us=claim.deadline_us,
            priority=claim.priority,
        )

    def _relate(self, tenant: str, session: str, claim: Claim) -> tuple[str, str | None]:
        """Workflow and parent of a session: as told now, as told before, or as they follow."""
        if claim.family is NONE:
            return claim.workflow or session, None
        known = self._known.get(tenant, session)
        parent = claim.parent if claim.parent != session else None
        if parent is None and known is not None:
            parent = known.parent
        workflow = claim.workflow or (known.workflow if known is not None else None)
        if workflow is None and parent is not None:
            above = self._known.get(tenant, parent)
            workflow = above.workflow if above is not None else parent
        workflow = workflow or claim.hint or session
        if known is None or known != (workflow, parent):
            self._known.put(tenant, session, Known(workflow, parent))
        return workflow, parent


def tool_durations(text: str) -> tuple[tuple[str, int], ...]:
    """The tools in ``Bash=742;Read=9`` and their microseconds; what cannot be read is left out."""
    if len(text) > MAX_DURATIONS:
        return ()
    tools = []
    for entry in text.split(";")[:MAX_TOOLS]:
        name, _, ms = entry.partition("=")
        tool, duration_ms = identifier(unquote(name)), count(ms)
        if tool is not None and duration_ms is not None:
            tools.append((tool, duration_ms * 1_000))
    return tuple(tools)


def _kind(headers: Mapping[str, str], claim: Claim, parent: str | None) -> str:
    told = headers.get(CLASS_HEADER)
    if told in KINDS:
        return told
    if claim.compaction or COMPACTION_HEADER in headers:
        return "compaction"
    return "main" if parent is None else "subagent"


def _messages(fields: Fields, api: str) -> list[Raw]:
    """The items of the conversation; a text counts as one. Other inputs are no conversation."""
    if fields.messages:
        return fields.messages
    if fields.input and api == "responses":
        return items(fields.input) or [fields.input]
    return [fields.prompt] if fields.prompt else []


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
