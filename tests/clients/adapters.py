"""The programs in ``apps`` whose frameworks are installed, and what is to be seen of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent / "apps"


@dataclass(frozen=True)
class App:
    """``sessions``: how many requests each makes, in the order in which they begin."""

    name: str
    package: str
    sessions: list[int]
    agents: list[str]
    """By session."""
    tools: set[str]
    parents: list[int | None]
    """By session: the number of the session that it works for."""
    steps: set[str] = field(default_factory=set)
    workflow: str | None = None
    """None: the framework makes an id."""
    final: bool = False
    """Whether it says when it is over."""

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}_app.py"

    @property
    def is_installed(self) -> bool:
        try:
            return find_spec(self.package) is not None
        except ModuleNotFoundError:
            return False


APPS = [
    app
    for app in (
        App(
            "langgraph", "langchain", [4, 4, 4, 4], ["lead", "expert", "expert", "expert"],
            {"ask_expert", "order_status"}, [None, 0, 0, 0], {"model"}, "ticket-7",
        ),
        App(
            "openai_agents", "agents", [4, 4, 4], ["Triage", "Expert", "Expert"],
            {"ask_expert", "order_status"}, [None, 0, 0], {"Lead", "Expert"}, "ticket-8",
        ),
        App(
            "crewai", "crewai", [4, 1], ["Helper", "Checker"],
            {"order_status"}, [None, None], {"find", "Checker"}, final=True,
        ),
        App(
            "adk", "google.adk", [4, 4, 4, 4], ["lead", "expert", "expert", "expert"],
            {"expert", "order_status"}, [None, 0, 0, 0], {"lead", "expert"}, "ticket-9",
        ),
        App(
            "autogen", "autogen_agentchat", [4, 1], ["helper", "checker"],
            {"order_status"}, [None, None], {"helper", "checker"},
        ),
        App(
            "strands", "strands", [4, 1], ["helper", "checker"],
            {"order_status"}, [None, None], {"helper", "checker"},
        ),
    )
    if app.is_installed
]  # fmt: skip
