"""Agent frameworks, unmodified, through a gateway; ``make clients`` installs them and runs these.

Frameworks that cannot be installed together have environments of their own, in which only the
tests of what is there run. Where none is installed there are no such tests, which fails a run of
this folder alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from tests.clients.adapters import APPS
from tests.clients.tap import Tap, tapped
from tests.clients.tools import MODEL
from tests.gateway.live import Live, engine, gateway

NEEDED = {
    "test_documents.py": "langchain",
    "test_graphs.py": "agent_framework",
    "test_hooks.py": "agents",
    "test_langgraph.py": "langchain",
    "test_openai_agents.py": "agents",
}
collect_ignore = [name for name, module in NEEDED.items() if find_spec(module) is None]
if not APPS:
    collect_ignore_glob = ["*"]

# Time would decide which tokens share an event: here all that are there do.
ENGINE: dict[str, Any] = {
    "speed": 500.0,
    "model": MODEL,
    "max_tool_calls": 3,
    "chunk_us": 10**9,
}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with gateway(engines=2, engine_options=ENGINE) as one:
        yield one
        one.check_nothing_is_lost()


@pytest.fixture
def tap(live: Live) -> Iterator[Tap]:
    """In front of the gateway."""
    with tapped(live.url) as one:
        yield one
        assert all(step.status == 200 for step in one.steps)


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """The URLs of an engine, and of a gateway in front of another one like it."""
    with engine(**ENGINE) as (direct, _), gateway(engines=1, engine_options=ENGINE) as through:
        yield direct, through.url


@pytest.fixture
def question(request: pytest.FixtureRequest) -> str:
    """What nobody else asks: an equal opening counts as the same request again."""
    return f"Where is order {request.node.name}?"
