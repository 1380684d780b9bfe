"""What engines tell of their KV, as the scheduler is told it: by session.

Engines echo the session id that came with a request, and that is the gateway's: clients' own ids do
not reach them, so that nobody can have KV counted as another tenant's.
"""

from __future__ import annotations

from saga.core import events as ev
from saga.core.model import Engine, Session, SessionState
from saga.gateway.host import Host
from saga.gateway.kv_blocks import Held
from saga.gateway.kv_feed import KvNews


def tell(host: Host, engine: str, news: KvNews) -> None:
    """Passes on what differs from what the scheduler believes of sessions at home on the engine.

    While a request of a session runs, its KV is in the making, and its end tells.
    """
    home = host.scheduler.state.engines.get(engine)
    if home is None:
        return
    sessions = host.scheduler.state.sessions
    if news.cleared and home.resident_tokens:
        for session in list(sessions.values()):
            if _may_differ(session, home):
                _resident(host, session, home, 0)
    for held in news.held:
        known = sessions.get(held.session)
        if known is not None and _may_differ(known, home):
            _resident(host, known, home, _believed(known, held))


def _may_differ(session: Session, home: Engine) -> bool:
    return session.home is home and session.state is not SessionState.REASONING


def _believed(session: Session, held: Held) -> int:
    """Engines count whole blocks: less than believed is a loss only if they say that it is one."""
    if held.lost:
        return min(held.tokens, session.resident_tokens)
    return max(session.resident_tokens, min(held.tokens, session.context_tokens))


def _resident(host: Host, session: Session, home: Engine, tokens: int) -> None:
    if tokens != session.resident_tokens:
        kind = ev.BlocksRemoved if tokens < session.resident_tokens else ev.BlocksStored
        host.tell(kind(at=host.now, engine=home.id, session=session.id, num_tokens=tokens))
