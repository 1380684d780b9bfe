"""The laws that every workflow script keeps."""

from __future__ import annotations

from saga.traces.script import SessionScript, StepScript, WorkflowScript


def check_script(script: WorkflowScript) -> None:
    """Raise ValueError naming the first law that a script breaks, the place and the value."""
    if not script.sessions:
        raise ValueError(f"workflow {script.id!r} has no session")
    if script.submitted_us is not None and script.submitted_us < 0:
        raise ValueError(f"workflow {script.id!r} is submitted at {script.submitted_us} us, < 0")
    for index, session in enumerate(script.sessions):
        where = f"workflow {script.id!r}, session {index}"
        if not session.steps:
            raise ValueError(f"{where} has no step")
        _check_origin(script, index, where)
        _check_steps(session, where)


def _check_origin(script: WorkflowScript, index: int, where: str) -> None:
    session = script.sessions[index]
    if (session.parent is None) != (index == 0):
        raise ValueError(f"{where}: the first session, and only it, has no parent")
    _expect(session.prefix_tokens, 0, None, f"{where}: prefix_tokens")
    if session.prefix is None and session.prefix_tokens:
        raise ValueError(f"{where}: {session.prefix_tokens} prefix tokens without a prefix")
    _expect(session.delay_us, 0, None, f"{where}: delay_us")
    forkable = 0
    if session.parent is not None:
        _expect(session.parent, 0, index - 1, f"{where}: parent")
        parent = script.sessions[session.parent]
        _expect(session.spawn_step, 0, len(parent.steps) - 1, f"{where}: spawn_step")
        forkable = _context(parent.steps[session.spawn_step])
    _expect(session.forked_tokens, 0, forkable, f"{where}: forked_tokens")


def _check_steps(session: SessionScript, where: str) -> None:
    shareable = max(session.prefix_tokens, session.forked_tokens)
    for index, step in enumerate(session.steps):
        what = f"{where}, step {index}"
        _expect(step.kept_tokens, 0, shareable, f"{what}: kept_tokens")
        _expect(step.new_tokens, 1, None, f"{what}: new_tokens")
        _expect(step.output_tokens, 1, None, f"{what}: output_tokens")
        _expect(step.gap_us, 0, None, f"{what}: gap_us")
        _expect(step.tool_us, 0, step.gap_us, f"{what}: tool_us")
        shareable = _context(step)
    _expect(session.steps[-1].gap_us, 0, 0, f"{where}, last step: gap_us")


def _context(step: StepScript) -> int:
    return step.prompt_tokens + step.output_tokens


def _expect(value: int, low: int, high: int | None, what: str) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{what} is {value}, allowed is {allowed}")
