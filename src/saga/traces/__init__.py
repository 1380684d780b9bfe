"""Workflow scripts, and readers and writers of public trace formats."""

from saga.traces.base import Problem, TraceError, TraceFile
from saga.traces.check import check_script
from saga.traces.reader import read_scripts
from saga.traces.run import TraceWriter
from saga.traces.script import SessionScript, StepScript, WorkflowScript
from saga.traces.stats import trace_stats
from saga.traces.writer import WRITERS, convert, write_scripts

__all__ = [
    "WRITERS",
    "Problem",
    "SessionScript",
    "StepScript",
    "TraceError",
    "TraceFile",
    "TraceWriter",
    "WorkflowScript",
    "check_script",
    "convert",
    "read_scripts",
    "trace_stats",
    "write_scripts",
]
