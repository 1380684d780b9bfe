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


Place = tuple[str, tuple[str, ...]]


class _Run(NamedTuple):
    """One run of LangChain's, and what it is part of."""

    root: str
    is_root: bool
    thread: str | None
    depth: int
    """Of graphs around it."""
    graph: tuple[str, ...]
    """The runs of sub-graphs that it is in, the outermost first."""

    @property
    def workflow(self) -> str:
        return self.thread or self.root

    @property
    def place(self) -> Place:
        return self.workflow, self.graph


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
        if above is None:
            above = _Run(str(run_id), parent_run_id is None, None, 0, ())
        told = metadata or {}
        depth = len(_tasks(told))
        run = _Run(
            root=above.root,
            is_root=parent_run_id is None,
            thread=str(told.get("thread_id") or above.thread or "") or None,
            depth=depth,
            # A task of a graph within a graph: the run above is that of the inner one.
            graph=(*above.graph, str(parent_run_id))
            if depth > max(1, above.depth)
            else above.graph,
        )
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
        agent = metadata.get("lc_agent_name")
        sent = (metadata.get("langgraph_path") or ("",))[0] == SENT
        task = _tasks(metadata)[-1] if sent else str(node)
        names = [run.workflow, *run.graph[-1:], agent, task]
        caller = (run.workflow, run.graph[:-1])
        identity = Identity(
            workflow=run.workflow,
            session="/".join(filter(None, names)),
            parent=self._runs.session(caller) if run.graph else None,
            agent=agent,
            step=str(node),
        )
        self._runs.begin(run_id, run.place, identity)

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
        if name:
            self._runs.begin_tool(run_id, run.place, str(name))

    @silent
    def on_tool_end(self, output: Any, *, run_id: UUID, **more: Any) -> None:
        self._known.pop(run_id)
        self._runs.end_tool(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        self.on_tool_end(None, run_id=run_id)


def _tasks(metadata: dict[str, Any]) -> list[str]:
    """The tasks of graphs within graphs, ``node:id`` each, down to the one that runs."""
    return str(metadata.get("langgraph_checkpoint_ns") or "").split("|")


def install(module: ModuleType) -> Undo:
    one = Handler()
    handler: ContextVar[Handler | None] = ContextVar("saga_langgraph", default=one)
    context.register_configure_hook(handler, inheritable=True)

    def undo() -> None:
        hooks = context._configure_hooks
        hooks[:] = [hook for hook in hooks if hook[0] is not handler]

    return undo
