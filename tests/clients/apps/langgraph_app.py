"""An agent whose tool is another agent."""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI


def order_status(order: str = "A-1") -> str:
    """Tells where an order is."""
    return f"Order {order} is on its way."


def workflow() -> Any:
    model = ChatOpenAI(model="tiny", api_key="any")
    expert = create_agent(model, [order_status], system_prompt="You look up.", name="expert")

    def ask_expert(question: str = "Where is A-1?") -> str:
        """Asks the expert."""
        state = expert.invoke({"messages": [{"role": "user", "content": question}]})
        return str(state["messages"][-1].text)

    return create_agent(model, [ask_expert], system_prompt="You lead.", name="lead")


if __name__ == "__main__":
    asked = {"messages": [{"role": "user", "content": "Where is my order?"}]}
    done = workflow().invoke(asked, {"configurable": {"thread_id": "ticket-7"}})
    print(done["messages"][-1].text)
