"""LangGraph: no line of the application.

A thread, or else a run, is a workflow. Each node of a graph that asks a model is a session over
all its turns; so is each of a sub-graph, for every time that it is called, and its parent is what
the calling graph asked last. Tasks made with ``Send`` run beside each other: each is a session.
"""

from __future__ import annotations

from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final, NamedTuple
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers import context

from saga.adapters.identity import Identity
from saga.adapters.runs import Kept, Runs
from saga.adapters.silence import Undo, silent

SENT: Final = "__pregel_push"
"""Begins the path of a task that was made with ``Send``."""


class _Run(NamedTuple):
    """One run of LangChain's: which one it belongs to in the end."""

    root: str
    is_root: bool
    thread: str | None


class Handler(BaseCallbackHandler):
    """Called inline, so that what it sets holds for the code that makes the request."""

    run_inline = True

    def __init__(self, runs: Runs[UUID] | None = None) -> None:
        self._runs: Runs[UUID] = runs or Runs()
        self._known: Kept[UUID, _Run] = Kept()

    # ---- which run is part of which

    @silent
    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **more: Any) -> None:
        self._enter(run_id, **more)

    @silent
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **more: Any) -> None:
        known = self._known.pop(run_id)
        if known is not None and known.is_root and known.thread is None:
            self._runs.finish(known.root)  # a thread may go on

    @silent
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        self.on_chain_end(None, run_id=run_id)

    def _enter(
        self,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **more: Any,
    ) -> _Run:
        above = None if parent_run_id is None else self._known.get(parent_run_id)
        thread = (metadata or {}).get("thread_id")
        thread = str(thread) if thread else above and above.thread
        run = _Run(above.root if above else str(run_id), parent_run_id is None, thread)
        self._known.put(run_id, run)
        return run

    # ---- requests to models

    @silent
    def on_chat_model_start(
        self,
        serialized: Any,
        messages: Any,
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        run = self._enter(run_id, metadata=metadata, **more)
        node = (metadata or {}).get("langgraph_node")
        if not metadata or not node:
            return
        workflow = run.thread or run.root
        graph, task = _graph_of(metadata)
        sent = (metadata.get("langgraph_path") or ("",))[0] == SENT
        names = [workflow, *graph, task if sent else str(node)]
        caller = (workflow, "|".join(graph[:-1]))
        identity = Identity(
            workflow=workflow,
            session="/".join(names),
            parent=self._runs.session(caller) if graph else None,
            agent=metadata.get("lc_agent_name"),
            step=str(node),
        )
        self._runs.begin(run_id, (workflow, "|".join(graph)), identity)

    def on_llm_start(self, serialized: Any, prompts: Any, **more: Any) -> None:
        self.on_chat_model_start(serialized, prompts, **more)

    @silent
    def on_llm_end(self, response: Any, *, run_id: UUID, **more: Any) -> None:
        self._known.pop(run_id)
        self._runs.end(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        self.on_llm_end(None, run_id=run_id)

    # ---- tools

    @silent
    def on_tool_start(
        self,
        serialized: Any,
        input_str: str,
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        run = self._enter(run_id, metadata=metadata, **more)
        name = (serialized or {}).get("name") or more.get("name")
        if name and metadata:
            graph, _ = _graph_of(metadata)
            self._runs.begin_tool(run_id, (run.thread or run.root, "|".join(graph)), str(name))

    @silent
    def on_tool_end(self, output: Any, *, run_id: UUID, **more: Any) -> None:
        self._known.pop(run_id)
        self._runs.end_tool(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        self.on_tool_end(None, run_id=run_id)


def _graph_of(metadata: dict[str, Any]) -> tuple[list[str], str]:
    """The tasks that lead to a graph, and the one of that graph that runs: ``node:id`` each."""
    *graph, task = str(metadata.get("langgraph_checkpoint_ns") or "").split("|")
    return graph, task


def install(module: ModuleType) -> Undo:
    one = Handler()
    handler: ContextVar[Handler | None] = ContextVar("saga_langgraph", default=one)
    context.register_configure_hook(handler, inheritable=True)

    def undo() -> None:
        hooks = context._configure_hooks
        hooks[:] = [hook for hook in hooks if hook[0] is not handler]

    return undo
