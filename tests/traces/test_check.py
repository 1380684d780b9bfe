from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from tests.traces.strategies import workflows

from saga.traces import SessionScript, StepScript, WorkflowScript, check_script

FIRST = StepScript(kept_tokens=10, new_tokens=90, output_tokens=20, tool_us=5, gap_us=7)
SECOND = StepScript(kept_tokens=120, new_tokens=30, output_tokens=1)
ROOT = SessionScript(steps=(FIRST, SECOND), prefix="p", prefix_tokens=10)
CHILD = SessionScript(
    steps=(StepScript(kept_tokens=120, new_tokens=1, output_tokens=1),),
    parent=0,
    forked_tokens=120,
)
SCRIPT = WorkflowScript(id="w", sessions=(ROOT, CHILD))


def with_root(**changes: Any) -> WorkflowScript:
    return replace(SCRIPT, sessions=(replace(ROOT, **changes), CHILD))


def with_first(**changes: Any) -> WorkflowScript:
    return with_root(steps=(replace(FIRST, **changes), SECOND))


def with_child(**changes: Any) -> WorkflowScript:
    return replace(SCRIPT, sessions=(ROOT, replace(CHILD, **changes)))


def test_a_script_at_every_bound_is_good() -> None:
    check_script(SCRIPT)


@given(workflows())
def test_scripts_made_by_the_rules_are_good(script: WorkflowScript) -> None:
    check_script(script)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(SCRIPT, sessions=()), "'w' has no session"),
        (replace(SCRIPT, submitted_us=-1), "submitted at -1"),
        (with_root(steps=()), "session 0 has no step"),
        (with_root(prefix=None), "10 prefix tokens without a prefix"),
        (with_root(prefix_tokens=9), "step 0: kept_tokens is 10, allowed is 0 to 9"),
        (with_root(delay_us=-1), "session 0: delay_us is -1, allowed is 0 or more"),
        (with_root(steps=(FIRST, replace(SECOND, kept_tokens=121))), "kept_tokens is 121"),
        (with_root(steps=(FIRST, replace(SECOND, gap_us=1))), "last step: gap_us is 1"),
        (with_first(new_tokens=0), "step 0: new_tokens is 0"),
        (with_first(output_tokens=0), "step 0: output_tokens is 0"),
        (with_first(tool_us=8), "step 0: tool_us is 8, allowed is 0 to 7"),
        (with_child(parent=None), "session 1: the first session, and only it"),
        (with_child(parent=1), "session 1: parent is 1, allowed is 0 to 0"),
        (with_child(spawn_step=2), "session 1: spawn_step is 2, allowed is 0 to 1"),
        (with_child(forked_tokens=121), "forked_tokens is 121, allowed is 0 to 120"),
    ],
)
def test_a_broken_law_is_named(broken: WorkflowScript, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_script(broken)
