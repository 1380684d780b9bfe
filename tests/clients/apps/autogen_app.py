"""A team of two agents: one finds out with a tool, one checks."""

from __future__ import annotations

import asyncio
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow
from autogen_ext.models.openai import OpenAIChatCompletionClient

ABILITIES: dict[str, Any] = {
    "vision": False,
    "function_calling": True,
    "json_output": False,
    "structured_output": False,
    "family": "unknown",
}


def order_status(order: str = "A-1") -> str:
    """Tells where an order is."""
    return f"Order {order} is on its way."


def workflow() -> Any:
    model: Any = OpenAIChatCompletionClient(model="tiny", api_key="any", model_info=ABILITIES)
    helper = AssistantAgent(
        "helper", model_client=model, tools=[order_status], max_tool_iterations=9
    )
    checker = AssistantAgent("checker", model_client=model, system_message="You check.")
    graph = DiGraphBuilder().add_node(helper).add_node(checker).add_edge(helper, checker).build()
    return GraphFlow([helper, checker], graph=graph, termination_condition=MaxMessageTermination(9))


if __name__ == "__main__":
    done = asyncio.run(workflow().run(task="Where is my order?"))
    print(done.messages[-1].to_text())
