"""What the agents of these tests have in common, whichever framework they are written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.clients.tap import Step

MODEL = "tiny"
CALLS = ["refund", "order_status", "order_status"]
"""Where the first one is forced: emulated engines go on with the first tool of the request."""
BLOCK_TOKENS = 16


def order_status(order: str = "A-1") -> str:
    """Tells where an order is."""
    return f"Order {order} is on its way."


def refund(order: str = "A-1") -> str:
    """Pays an order back."""
    return f"Order {order} is paid back."


@dataclass(frozen=True)
class Used:
    """Tokens of one step's prompt, as the framework counts them."""

    prompt: int
    cached: int


def check_cached(used: Sequence[Used]) -> None:
    """Each step finds all that the one before it was asked, up to the last block."""
    for before, now in pairwise(used):
        assert before.prompt - BLOCK_TOKENS < now.cached < now.prompt


def check_one_session(steps: Sequence[Step], source: str = "lineage") -> None:
    """All of one session, on one engine; the first one can only be told by what it says."""
    assert len({step.session for step in steps}) == 1
    assert len({step.engine for step in steps}) == 1
    assert [step.source for step in steps] == ["lineage", *[source] * (len(steps) - 1)]


def sessions(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps by session, in the order in which the sessions began."""
    by_session: dict[str | None, list[Step]] = {}
    for step in steps:
        by_session.setdefault(step.session, []).append(step)
    return list(by_session.values())
