"""Google ADK: no line of the application; every runner gets a plugin.

A session of ADK's is a workflow: one user's conversation with an application. Each of its agents
is a session of SAGA's, as their instructions differ; so is each branch of agents that work beside
each other. An agent that is called as a tool belongs to the workflow of the caller.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from google.adk.plugins.base_plugin import BasePlugin

from saga.adapters.identity import Identity
from saga.adapters.runs import Runs
from saga.adapters.silence import Undo, silent

NAME: Final = "saga"


class SagaPlugin(BasePlugin):
    """Says nothing to ADK: each callback gives None, so that the run goes on as it would."""

    def __init__(self, runs: Runs[str] | None = None) -> None:
        super().__init__(name=NAME)
        self._runs: Runs[str] = runs or Runs()

    async def before_model_callback(self, *, callback_context: Any, llm_request: Any) -> None:
        self._begin(callback_context)

    async def after_model_callback(self, *, callback_context: Any, llm_response: Any) -> None:
        if not getattr(llm_response, "partial", False):
            self._end(callback_context)

    async def on_model_error_callback(
        self, *, callback_context: Any, llm_request: Any, error: Exception
    ) -> None:
        self._end(callback_context)

    async def before_tool_callback(self, *, tool: Any, tool_args: Any, tool_context: Any) -> None:
        self._begin_tool(tool, tool_context)

    async def after_tool_callback(
        self, *, tool: Any, tool_args: Any, tool_context: Any, result: Any
    ) -> None:
        self._end_tool(tool_context)

    async def on_tool_error_callback(
        self, *, tool: Any, tool_args: Any, tool_context: Any, error: BaseException
    ) -> None:
        self._end_tool(tool_context)

    @silent
    def _begin(self, context: Any) -> None:
        session = _session(context)
        agent = str(context.agent_name)
        identity = Identity(
            workflow=str(context.session.id), session=session, agent=agent, step=agent
        )
        self._runs.begin(session, session, identity)

    @silent
    def _end(self, context: Any) -> None:
        self._runs.end(_session(context))

    @silent
    def _begin_tool(self, tool: Any, context: Any) -> None:
        self._runs.begin_tool(_call(context), _session(context), str(tool.name))

    @silent
    def _end_tool(self, context: Any) -> None:
        self._runs.end_tool(_call(context))


def _session(context: Any) -> str:
    branch = getattr(getattr(context, "_invocation_context", None), "branch", None)
    names = [str(context.session.id), str(branch or ""), str(context.agent_name)]
    return "/".join(filter(None, names))


def _call(context: Any) -> str:
    return f"{_session(context)} {context.function_call_id}"


def install(module: ModuleType) -> Undo:
    manager: Any = module.__dict__["PluginManager"]
    original = manager.__init__

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _add(self)

    def undo() -> None:
        if manager.__init__ is begin:
            manager.__init__ = original

    manager.__init__ = begin
    return undo


@silent
def _add(manager: Any) -> None:
    if manager.get_plugin(NAME) is None:
        manager.register_plugin(SagaPlugin())
