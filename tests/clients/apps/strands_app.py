"""A graph of two agents: one finds out with a tool, one checks."""

from __future__ import annotations

import os
from typing import Any

from strands import Agent, tool
from strands.models.openai import OpenAIModel
from strands.multiagent import GraphBuilder


@tool
def order_status(order: str = "A-1") -> str:
    """Tells where an order is.

    Args:
        order: Which one.
    """
    return f"Order {order} is on its way."


def workflow() -> Any:
    access = {"api_key": "any", "base_url": os.environ["OPENAI_BASE_URL"]}
    model = OpenAIModel(client_args=access, model_id="tiny")
    builder = GraphBuilder()
    builder.add_node(Agent(model, tools=[order_status], name="helper", callback_handler=None))
    builder.add_node(Agent(model, name="checker", callback_handler=None))
    builder.add_edge(*builder.nodes)
    return builder.set_max_node_executions(9).build()


if __name__ == "__main__":
    done = workflow()("Where is my order?")
    print([str(result.result) for result in done.results.values()])
