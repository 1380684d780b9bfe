"""``/v1/saga/...``: workflows, graphs, engines, decisions and fairness, for clients and operators.

A tenant sees and changes what is its own; engines are an administrator's. While no keys are
configured, everybody is both.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec import Meta, Struct

from saga import wire
from saga.core.forecast import Forecaster
from saga.core.return_times import owner_of
from saga.gateway.announced import Announcements, announce
from saga.gateway.discovery import DiscoveryError
from saga.gateway.errors import GatewayError
from saga.gateway.fairness import SPANS
from saga.gateway.graphs import GraphDocument, GraphError, critical_steps, mean_steps, transitions
from saga.gateway.locations import MAX_ID, MAX_PRIORITY, MIN_PRIORITY, identifier
from saga.gateway.sessions import LiveWorkflow, scoped
from saga.gateway.ui import snapshot
from saga.report.learned import learned_graph

if TYPE_CHECKING:
    from saga.gateway.fleet import LiveEngine
    from saga.gateway.service import Gateway

Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]
Answer = tuple[int, Any]
MAX_LISTED = 1_000
MAX_GRAPHS = 1_000
T = TypeVar("T")


class _Declared(Struct, forbid_unknown_fields=True):
    workflow_id: Name
    agent_type: Name | None = None
    mean_steps: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    deadline_ms: Annotated[int, Meta(gt=0, le=10**10)] | None = None
    priority: Annotated[float, Meta(ge=MIN_PRIORITY, le=MAX_PRIORITY)] | None = None


class _Engine(Struct, forbid_unknown_fields=True):
    url: str


class Control:
    """Answers with a status and a document; GatewayError otherwise."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._graphs: dict[str, GraphDocument] = {}
        """By scoped name."""
        self._transitions: dict[str, tuple[dict[str, dict[str, float]], float | None]] = {}
        """And what they say of what follows what, with their mean steps."""
        gateway.foresight.forecasts.made = self._forecaster_made

    async def serve(
        self,
        method: str,
        target: str,
        body: bytes,
        tenant: str | None,
        *,
        admin: bool,
    ) -> Answer:
        path, _, query = target.partition("?")
        parts = [unquote(part) for part in path.removeprefix(f"{wire.CONTROL}/").split("/")]
        match (method, *parts):
            case ("GET", "workflows"):
                return 200, {"workflows": self._list_workflows(tenant, admin=admin)}
            case ("POST", "workflows"):
                return self._declare(body, self._tenant(tenant))
            case ("GET", "workflows", name):
                return 200, self._told_whole(self._workflow(name, tenant, admin=admin))
            case ("DELETE", "workflows", name) | ("POST", "workflows", name, "finish"):
                self._gateway.sessions.finish(self._workflow(name, tenant, admin=admin))
                return 200, {"finished": name}
            case ("POST", "workflows", name, "events"):
                told = _decoded(body, Announcements)
                workflow = self._workflow(name, tenant, admin=admin)
                ignored = announce(self._gateway.sessions, workflow, told)
                return 200, {"ignored": ignored}
            case ("GET", "graphs"):
                return 200, {
                    "graphs": self._list_graphs(tenant, admin=admin),
                    "learned": self._learned_types(tenant),
                }
            case ("GET", "graphs", name):
                return 200, self._graph(name, tenant)
            case ("PUT", "graphs", name):
                return self._put_graph(name, body, self._tenant(tenant))
            case ("GET", "engines"):
                return 200, {"engines": self._list_engines()}
            case (("POST" | "DELETE") as verb, "engines", *rest):
                if not admin:
                    raise GatewayError(403, "engines are an administrator's to change")
                return self._change_engines(verb, rest, body)
            case ("GET", "decisions"):
                return 200, {"decisions": self._decisions(query, tenant, admin=admin)}
            case ("GET", "fairness"):
                return 200, self._fairness(query, None if admin else tenant)
            case ("GET", "live"):
                return 200, snapshot(self._gateway, None if admin else tenant)
        raise GatewayError(404, f"{method} {path} is not here")

    def _tenant(self, tenant: str | None) -> str:
        if tenant is None:
            raise GatewayError(403, "an admin key is not a tenant's: use one of a tenant")
        return tenant

    # ---- workflows

    def _list_workflows(self, tenant: str | None, *, admin: bool) -> list[dict[str, Any]]:
        mine = (
            workflow
            for workflow in self._gateway.sessions.workflows.values()
            if admin or workflow.tenant == tenant
        )
        return [_told(workflow) for workflow, _ in zip(mine, range(MAX_LISTED), strict=False)]

    def _told_whole(self, workflow: LiveWorkflow) -> dict[str, Any]:
        """With what is foreseen of each session."""
        gateway, told = self._gateway, _told(workflow)
        for session, one in zip(workflow.sessions.values(), told["sessions"], strict=True):
            away = not session.num_inflight
            one["forecast"] = gateway.foresight.of(session.id, gateway.host.now) if away else None
        return told

    def _workflow(self, name: str, tenant: str | None, *, admin: bool) -> LiveWorkflow:
        workflows = self._gateway.sessions.workflows
        found = workflows.get(scoped(tenant, name)) if tenant is not None else None
        if found is None and admin:
            found = workflows.get(name)  # an administrator names the tenant, too
        if found is None:
            raise GatewayError(404, f"workflow {name!r} is not known")
        return found

    def _declare(self, body: bytes, tenant: str) -> Answer:
        declared = _decoded(body, _Declared)
        sessions = self._gateway.sessions
        if scoped(tenant, declared.workflow_id) in sessions.workflows:
            raise GatewayError(409, f"workflow {declared.workflow_id!r} runs already")
        if len(sessions.workflows) >= self._gateway.settings.sessions.max_sessions:
            raise GatewayError(429, "there are too many workflows", retry_after_s=60)
        workflow = sessions.declare(
            tenant,
            self._gateway.tenant(tenant).weight,
            declared.workflow_id,
            agent_type=declared.agent_type,
            mean_steps=declared.mean_steps,
            deadline_us=None if declared.deadline_ms is None else declared.deadline_ms * 1_000,
            priority=declared.priority,
        )
        return 201, _told(workflow)

    # ---- graphs

    def _put_graph(self, name: str, body: bytes, tenant: str) -> Answer:
        if identifier(name) is None:
            raise GatewayError(400, f"a graph's name has 1 to {MAX_ID} printable characters")
        graph = _decoded(body, GraphDocument)
        try:
            steps = mean_steps(graph)
        except GraphError as error:
            raise GatewayError(400, f"graph {name!r}: {error}") from None
        key = scoped(tenant, name)
        if key not in self._graphs and len(self._graphs) >= MAX_GRAPHS:
            raise GatewayError(429, f"there are {MAX_GRAPHS} graphs already", retry_after_s=60)
        before = self._graphs.get(key)
        self._graphs[key] = graph
        if before != graph:
            self._declare_transitions(key, graph, steps, changed=before is not None)
        self._gateway.sessions.declared.pop(key, None)
        if steps is not None:
            self._gateway.sessions.declared[key] = steps
        return 201 if before is None else 200, {
            "name": name,
            "mean_steps": steps,
            "critical_steps": None if steps is None else critical_steps(graph),
        }

    def _declare_transitions(
        self, key: str, graph: GraphDocument, steps: float | None, *, changed: bool
    ) -> None:
        """For forecasts, and for those of that type that are made later."""
        forecasts = self._gateway.foresight.forecasts
        self._transitions[key] = transitions(graph), steps
        if changed:  # what was learned was learned of another one
            forecasts.begin_anew(key)
        known = forecasts.peek(key)
        if known is not None:
            known.declare(*self._transitions[key])

    def _forecaster_made(self, agent_type: str, made: Forecaster) -> None:
        declared = self._transitions.get(agent_type)
        if declared is not None:
            made.declare(*declared)

    def _list_graphs(self, tenant: str | None, *, admin: bool) -> list[dict[str, Any]]:
        return [
            {"name": name.partition("/")[2], "tenant": name.partition("/")[0], "graph": graph}
            for name, graph in self._graphs.items()
            if admin or name.startswith(f"{tenant}/")
        ]

    def _learned_types(self, tenant: str | None) -> list[str]:
        """Agent types of which something was learned; an admin key sees whose they are."""
        known = self._gateway.host.scheduler.view.graphs.known()
        if tenant is None:
            return list(known)
        mine = f"{tenant}/"
        return [kind.removeprefix(mine) for kind in known if kind.startswith(mine)]

    def _graph(self, name: str, tenant: str | None) -> dict[str, Any]:
        """What was declared of an agent type, and what was learned; an admin key names its tenant,
        too."""
        view = self._gateway.host.scheduler.view
        key = name if tenant is None else scoped(tenant, name)
        declared, owner = self._graphs.get(key), owner_of(key)
        learned = None
        if key in view.graphs.known():
            learned = learned_graph(
                view.graphs[key], partial(view.return_times.quantile, owner=owner)
            )
        if declared is None and learned is None:
            raise GatewayError(404, f"graph {name!r} is not known")
        return {"name": name, "declared": declared, "learned": learned}

    # ---- engines

    def _list_engines(self) -> list[dict[str, Any]]:
        fleet, now = self._gateway.fleet, self._gateway.host.now
        told = self._gateway.kv_events.told
        return [
            {**_engine(engine, now), "kv_events": told(engine.name)}
            for engine in fleet.engines.values()
        ]

    def _change_engines(self, verb: str, rest: list[str], body: bytes) -> Answer:
        fleet = self._gateway.fleet
        try:
            match (verb, *rest):
                case ("POST",):
                    return 201, {"name": fleet.add(_decoded(body, _Engine).url)}
                case ("POST", name, "drain"):
                    fleet.drain(name)
                    return 200, {"draining": name}
                case ("DELETE", name):
                    fleet.remove(name)
                    return 200, {"removed": name}
        except DiscoveryError as error:
            raise GatewayError(400, str(error), param="url") from None
        except KeyError as error:
            raise GatewayError(404, f"engine {error} is not known") from None
        raise GatewayError(404, "engines can be added, drained and removed")

    # ---- decisions and fairness

    def _decisions(self, query: str, tenant: str | None, *, admin: bool) -> list[dict[str, Any]]:
        asked = parse_qs(query)
        session = asked.get("session", [None])[0]
        limit = asked.get("limit", ["100"])[0]
        if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= MAX_LISTED:
            raise GatewayError(400, f"limit: allowed is 1 to {MAX_LISTED}", param="limit")
        if session is not None and tenant is not None:
            session = scoped(tenant, session)
        owner = None if admin else tenant
        return list(self._gateway.journal.entries(tenant=owner, session=session, limit=int(limit)))

    def _fairness(self, query: str, owner: str | None) -> dict[str, Any]:
        asked = parse_qs(query).get("span", ["hour"])[0]
        for span in SPANS:
            if asked == span:
                return self._gateway.fairness.told(owner, span)
        raise GatewayError(400, f"span: allowed are {' and '.join(SPANS)}", param="span")


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise GatewayError(400, str(error)) from None
    except msgspec.DecodeError as error:
        raise GatewayError(400, f"the body is not JSON: {error}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise GatewayError(400, f"the body is not JSON: {type(error).__name__}") from None


def _told(workflow: LiveWorkflow) -> dict[str, Any]:
    return {
        "id": workflow.id.partition("/")[2],
        "tenant": workflow.tenant,
        "agent_type": workflow.agent_type.partition("/")[2],
        "source": workflow.source,
        "submitted_us": workflow.submitted,
        "sessions": [
            {
                "id": session.id.partition("/")[2],
                "requests": session.num_inflight,
                "tool": session.tool,
                "step": session.step,
                "context_tokens": session.prompt_tokens,
            }
            for session in workflow.sessions.values()
        ],
    }


def _engine(engine: LiveEngine, now: int) -> dict[str, Any]:
    info, sample = engine.info, engine.sample
    return {
        "name": engine.name,
        "url": engine.url,
        "state": engine.state,
        "error": engine.error,
        "breaker": engine.breaker.state(now),
        "kind": info.kind if info else None,
        "version": info.version if info else None,
        "models": list(info.models) if info else [],
        "kv_capacity_tokens": info.kv_capacity_tokens if info else None,
        "max_num_seqs": info.max_num_seqs if info else None,
        "capabilities": sorted(info.capabilities) if info else [],
        "degraded": list(info.notes) if info else [],
        "load": None
        if sample is None
        else {
            "running": sample.running,
            "waiting": sample.waiting,
            "kv_used": sample.kv_used,
            "age_s": round(max(0, now - sample.at_us) / 1e6, 3),
        },
    }
