"""An agent that hands over to one whose tool is another agent."""

from __future__ import annotations

from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner, function_tool
from openai import AsyncOpenAI
from pydantic import BaseModel


class Task(BaseModel):
    order: str = "A-1"


@function_tool
def order_status(order: str = "A-1") -> str:
    """Tells where an order is."""
    return f"Order {order} is on its way."


def workflow() -> Any:
    model = OpenAIChatCompletionsModel("tiny", AsyncOpenAI(api_key="any"))
    expert = Agent(name="Expert", instructions="You know.", model=model, tools=[order_status])
    tool = expert.as_tool("ask_expert", "Asks the expert.", parameters=Task)
    lead = Agent(name="Lead", instructions="You lead.", model=model, tools=[tool])
    return Agent(name="Triage", instructions="You send on.", model=model, handoffs=[lead])


if __name__ == "__main__":
    config = RunConfig(group_id="ticket-8")
    print(Runner.run_sync(workflow(), "Where is my order?", run_config=config).final_output)
