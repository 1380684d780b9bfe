"""An agent whose tool is another agent."""

from __future__ import annotations

import asyncio
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["OPENAI_API_KEY"] = "any"

from google.adk.agents import Agent
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.adk.tools.agent_tool import AgentTool
from google.genai import types


def order_status(order: str = "A-1") -> str:
    """Tells where an order is."""
    return f"Order {order} is on its way."


def workflow() -> Any:
    model = LiteLlm(model="openai/tiny", api_base=os.environ["OPENAI_BASE_URL"])
    expert = Agent(name="expert", model=model, instruction="You know.", tools=[order_status])
    return Agent(name="lead", model=model, instruction="You lead.", tools=[AgentTool(expert)])


async def main() -> None:
    runner = InMemoryRunner(agent=workflow(), app_name="orders")
    ticket = {"user_id": "u", "session_id": "ticket-9"}
    await runner.session_service.create_session(app_name="orders", **ticket)
    question = types.Content(role="user", parts=[types.Part(text="Where is my order?")])
    async for event in runner.run_async(new_message=question, **ticket):
        if event.is_final_response():
            print(event.content.parts[0].text)


if __name__ == "__main__":
    asyncio.run(main())
