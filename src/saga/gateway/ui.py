"""The page behind ``/ui``, and the picture that it asks ``/v1/saga/live`` for."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import saga
from saga.gateway.live import is_of

if TYPE_CHECKING:
    from saga.core.model import Engine
    from saga.gateway.fleet import LiveEngine
    from saga.gateway.service import Gateway

PATHS = frozenset({"/ui", "/ui/"})
NUM_DECISIONS = 50


def page() -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The page and the headers to send with it. It holds no data, so anybody may have it."""
    html = files("saga.gateway").joinpath("ui.html").read_bytes()
    script = html.partition(b"<script>")[2].partition(b"</script>")[0]
    # Only this very script runs: an id that should ever slip through as markup stays dead.
    allowed = f"'sha256-{b64encode(sha256(script).digest()).decode()}'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]


def snapshot(gateway: Gateway, owner: str | None) -> dict[str, Any]:
    """The picture for a tenant, or None for an administrator, who sees everybody."""
    now, view = gateway.host.now, gateway.live
    known = gateway.host.scheduler.state.engines
    return {
        "now_us": now,
        "version": saga.__version__,
        "preset": gateway.settings.preset,
        "tenant": owner,
        "draining": gateway.draining,
        "totals": _totals(gateway, owner),
        "tct": view.completion(owner),
        "rates": view.rates(owner, now),
        "engines": [
            _told_engine(engine, known.get(name), now)
            for name, engine in sorted(gateway.fleet.engines.items())
        ],
        "lanes": view.lanes(owner, now),
        "decisions": list(gateway.journal.entries(tenant=owner, session=None, limit=NUM_DECISIONS)),
    }


def _totals(gateway: Gateway, owner: str | None) -> dict[str, int]:
    """Requests by how they ended, as ``/metrics`` counts them, and those held now."""
    counts = gateway.metrics.totals(lambda tenant: is_of(owner, tenant))
    if owner is None:
        return {**counts, "held": gateway.host.num_held}
    tenant = gateway.host.scheduler.state.tenants.get(owner)
    return {**counts, "held": tenant.num_queued if tenant is not None else 0}


def _told_engine(live: LiveEngine, known: Engine | None, now: int) -> dict[str, Any]:
    sample = live.sample
    told: dict[str, Any] = {
        "name": live.name,
        "state": live.state,
        "breaker": live.breaker.state(now),
        "kind": live.info.kind if live.info else None,
        "degraded": [*(live.info.notes if live.info else ()), *filter(None, [live.error])],
        "kv_used": sample.kv_used if sample is not None else None,
    }
    if known is None:
        return told
    active = {r.session.id: r.session for r in known.requests.values() if r.session.home is known}
    busy = sum(session.resident_tokens for session in active.values())
    return told | {
        "running": known.num_running,
        "waiting": known.num_waiting,
        "queued": known.num_queued,
        "max_num_seqs": known.max_num_seqs,
        "kv_capacity_tokens": known.kv_capacity_tokens,
        "kv_busy_tokens": busy,
        "kv_idle_tokens": max(0, known.resident_tokens - busy),
    }
