"""Collects what a run leaves behind, in memory bounded by the number of workflows."""

from __future__ import annotations

from array import array

from saga.report.records import Outcome, WorkflowRecord
from saga.traces.script import WorkflowScript


class Recorder:
    """One record per workflow; the root session's parts of TCT are added up as they happen."""

    def __init__(self) -> None:
        self.workflows: list[WorkflowRecord] = []
        self.ttft_us: dict[str, array[int]] = {}
        """By tenant class."""
        self.live: dict[str, WorkflowRecord] = {}

    def submit(
        self,
        script: WorkflowScript,
        now: int,
        *,
        measured: bool,
        alone_us: int,
        expected_us: int,
        share_us: int = 0,
    ) -> None:
        record = WorkflowRecord(
            id=script.id,
            tenant=script.tenant,
            tenant_class=script.tenant_class,
            agent_type=script.agent_type,
            outcome=Outcome.UNFINISHED,
            measured=measured,
            submitted_us=now,
            finished_us=None,
            num_steps=script.num_steps,
            alone_us=alone_us,
            expected_us=expected_us,
            share_us=share_us,
        )
        self.workflows.append(record)
        self.live[script.id] = record

    def request(
        self,
        workflow: str,
        *,
        root: bool,
        arrived: int,
        started: int,
        first_token: int,
        finished: int,
        regenerated_share: float,
    ) -> None:
        """One finished request; ``regenerated_share`` of its uncached tokens were regenerated."""
        record = self.live[workflow]
        self.waited(workflow, started - arrived)
        if record.measured:
            of_class = self.ttft_us.setdefault(record.tenant_class, array("q"))
            of_class.append(first_token - arrived)
        if not root:
            return
        regenerated = round((first_token - started) * regenerated_share)
        record.queue_us += started - arrived
        record.regenerated_us += regenerated
        record.prefill_us += first_token - started - regenerated
        record.decode_us += finished - first_token

    def waited(self, workflow: str, wait_us: int) -> None:
        record = self.live[workflow]
        record.longest_wait_us = max(record.longest_wait_us, wait_us)

    def gap(self, workflow: str, gap_us: int, subagents_us: int) -> None:
        """The root session was in a tool, and waited for sub-agents beyond that."""
        record = self.live[workflow]
        record.tool_us += gap_us
        record.subagents_us += subagents_us

    def end(self, workflow: str, now: int, outcome: Outcome, root_ended: int | None) -> None:
        record = self.live.pop(workflow)
        record.outcome = outcome
        if outcome is Outcome.FINISHED:
            record.finished_us = now
            record.subagents_us += now - (root_ended if root_ended is not None else now)
