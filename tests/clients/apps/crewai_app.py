"""A crew of two agents: one finds out with a tool, one checks."""

from __future__ import annotations

import os
from typing import Any

os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"
os.environ["OPENAI_API_KEY"] = "any"

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool


@tool
def order_status(order: str = "A-1") -> str:
    """Tells where an order is."""
    return f"Order {order} is on its way."


def workflow() -> Any:
    llm = LLM(model="openai/tiny", base_url=os.environ["OPENAI_BASE_URL"])
    helper = Agent(role="Helper", goal="help", backstory="You help.", llm=llm, tools=[order_status])
    checker = Agent(role="Checker", goal="check", backstory="You check.", llm=llm)
    find = Task(name="find", description="Where is it?", expected_output="A place.", agent=helper)
    check = Task(description="Check it.", expected_output="A verdict.", agent=checker)
    return Crew(agents=[helper, checker], tasks=[find, check])


if __name__ == "__main__":
    print(workflow().kickoff())
