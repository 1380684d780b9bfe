"""OpenAI Agents SDK: no line of the application, as long as it does not disable tracing.

A trace, or a group of traces, is a workflow. A run that begins with one agent is a session over
all its turns, and over those of agents that take over. An agent that is called as a tool is a
session of its own each time; so are runs of the same agent beside each other.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from agents.tracing import TracingProcessor, get_trace_provider

from saga.adapters.identity import Identity
from saga.adapters.runs import Kept, Runs
from saga.adapters.silence import Undo, silent

REQUESTS: Final = ("generation", "response")
"""The kinds of spans around a request to a model."""


class _Run:
    """One run of an agent, and of those that it hands over to."""

    def __init__(self, span: str, parent: str | None, caller: str | None) -> None:
        self.span = span
        self.parent = parent
        """The session of the caller."""
        self.caller = caller
        """The tool call that it was started by."""
        self.session: str | None = None
        self.agent: str | None = None


class _Trace:
    def __init__(self, workflow: str, *, grouped: bool) -> None:
        self.workflow = workflow
        self.grouped = grouped
        """Further traces may follow."""
        self.working: dict[str, str] = {}
        """The runs by session, of those that are under way."""


class Processor(TracingProcessor):
    """Called in the context of what makes the request."""

    def __init__(self, runs: Runs[str] | None = None) -> None:
        self._runs: Runs[str] = runs or Runs()
        self._traces: Kept[str, _Trace] = Kept()
        self._spans: Kept[str, tuple[_Run | None, str | None]] = Kept()
        """The run that a span is in, and the tool call."""

    @silent
    def on_trace_start(self, trace: Any) -> None:
        group = getattr(trace, "group_id", None)
        one = _Trace(str(group or trace.trace_id), grouped=group is not None)
        self._traces.put(trace.trace_id, one)

    @silent
    def on_trace_end(self, trace: Any) -> None:
        known = self._traces.pop(trace.trace_id)
        if known is not None and not known.grouped:
            self._runs.finish(known.workflow)

    @silent
    def on_span_start(self, span: Any) -> None:
        trace = self._traces.get(span.trace_id)
        if trace is None:
            return
        name, data = span.span_id, span.span_data
        run, tool = self._spans.get(span.parent_id) or (None, None)
        if data.type == "task" or (data.type == "agent" and (run is None or tool is not None)):
            run, tool = _Run(name, run.session if run else None, tool), None
        if run is not None:
            if data.type == "agent":
                self._work(trace, run, data.name)
            elif data.type in REQUESTS:
                self._runs.begin(name, run.span, _identity(trace, run))
            elif data.type == "function":
                tool = name
                self._runs.begin_tool(name, run.span, data.name)
        self._spans.put(name, (run, tool))

    @silent
    def on_span_end(self, span: Any) -> None:
        run, _ = self._spans.pop(span.span_id) or (None, None)
        kind = span.span_data.type
        if kind in REQUESTS:
            self._runs.end(span.span_id)
        elif kind == "function":
            self._runs.end_tool(span.span_id)
        trace = self._traces.get(span.trace_id)
        if trace is not None and run is not None and run.span == span.span_id and run.session:
            trace.working.pop(run.session, None)

    def _work(self, trace: _Trace, run: _Run, agent: str) -> None:
        """An agent begins in a run: the first one gives the session its name."""
        run.agent = agent
        if run.session is None:
            session = f"{trace.workflow}/{agent}"
            if run.caller is not None or trace.working.setdefault(session, run.span) != run.span:
                session = f"{session}/{run.caller or run.span}"
            run.session = session

    def shutdown(self) -> None:
        pass

    def force_flush(self) -> None:
        pass


def _identity(trace: _Trace, run: _Run) -> Identity:
    return Identity(
        workflow=trace.workflow,
        session=run.session,
        parent=run.parent,
        agent=run.agent,
        step=run.agent,
    )


def install(module: ModuleType) -> Undo:
    """Stays when the application sets processors of its own, as it does to send traces nowhere."""
    provider: Any = get_trace_provider()
    processor = Processor()
    set_processors = provider.set_processors

    def keep(processors: list[Any]) -> None:
        set_processors([*processors, processor])

    def undo() -> None:
        provider.set_processors = set_processors
        rest = [one for one in provider._multi_processor._processors if one is not processor]
        set_processors(rest)

    provider.set_processors = keep
    provider.register_processor(processor)
    return undo
