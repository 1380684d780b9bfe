"""Workflow scripts that keep all laws, for property tests."""

from dataclasses import replace

from hypothesis import strategies as st

from saga.traces import SessionScript, StepScript, WorkflowScript

TOKENS = st.integers(1, 5000)
MICROSECONDS = st.integers(0, 10**12)
NAMES = st.text(st.characters(codec="utf-8"), max_size=8)


@st.composite
def steps(draw: st.DrawFn, shareable: int, last: bool) -> StepScript:
    gap_us = 0 if last else draw(MICROSECONDS)
    return StepScript(
        kept_tokens=draw(st.integers(0, shareable)),
        new_tokens=draw(TOKENS),
        output_tokens=draw(TOKENS),
        tool=draw(st.none() | NAMES),
        tool_us=draw(st.integers(0, gap_us)),
        gap_us=gap_us,
    )


@st.composite
def sessions(draw: st.DrawFn, earlier: list[SessionScript]) -> SessionScript:
    """A session that one of the ``earlier`` ones spawned; the root if there are none."""
    parent = draw(st.integers(0, len(earlier) - 1)) if earlier else None
    spawn_step = forked_tokens = 0
    if parent is not None:
        spawn_step = draw(st.integers(0, len(earlier[parent].steps) - 1))
        spawning = earlier[parent].steps[spawn_step]
        forked_tokens = draw(st.integers(0, spawning.prompt_tokens + spawning.output_tokens))
    prefix = draw(st.none() | NAMES)
    prefix_tokens = 0 if prefix is None else draw(st.integers(0, 3000))
    num = draw(st.integers(1, 4))
    shareable = max(prefix_tokens, forked_tokens)
    played: list[StepScript] = []
    for index in range(num):
        played.append(draw(steps(shareable, index == num - 1)))
        shareable = played[-1].prompt_tokens + played[-1].output_tokens
    return SessionScript(
        steps=tuple(played),
        prefix=prefix,
        prefix_tokens=prefix_tokens,
        parent=parent,
        spawn_step=spawn_step,
        delay_us=draw(MICROSECONDS),
        forked_tokens=forked_tokens,
        blocking=draw(st.booleans()),
    )


@st.composite
def workflows(draw: st.DrawFn) -> WorkflowScript:
    made: list[SessionScript] = []
    for _ in range(draw(st.integers(1, 3))):
        made.append(draw(sessions(made)))
    return WorkflowScript(
        id=draw(NAMES),
        sessions=tuple(made),
        tenant=draw(NAMES),
        tenant_class=draw(NAMES),
        agent_type=draw(NAMES),
        submitted_us=draw(st.none() | MICROSECONDS),
    )


def told_apart(script: WorkflowScript) -> WorkflowScript:
    """Whole milliseconds, none at once: by the times alone it is clear what came after what.

    A sub-agent begins before its parent's next step, and each gap takes a while.
    """
    sessions: list[SessionScript] = []
    for session in script.sessions:
        steps = [*map(_whole_ms, session.steps[:-1]), session.steps[-1]]
        delay_us = session.delay_us // 1000 * 1000
        if session.parent is not None:
            spawning = sessions[session.parent].steps[session.spawn_step : -1]
            if spawning:
                delay_us = min(delay_us, spawning[0].gap_us - 1000)
        sessions.append(replace(session, steps=tuple(steps), delay_us=delay_us))
    return replace(script, sessions=tuple(sessions), submitted_us=0)


def _whole_ms(step: StepScript) -> StepScript:
    gap_us = step.gap_us // 1000 * 1000 + 1000
    return replace(step, gap_us=gap_us, tool_us=min(step.tool_us // 1000 * 1000, gap_us))


several_workflows = st.lists(workflows(), min_size=1, max_size=3, unique_by=lambda one: one.id)
