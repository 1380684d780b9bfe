import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.traces.strategies import workflows

from saga.traces import (
    Problem,
    SessionScript,
    StepScript,
    TraceError,
    WorkflowScript,
    read_scripts,
    write_scripts,
)

STEP = StepScript(kept_tokens=0, new_tokens=5, output_tokens=2)
SCRIPT = WorkflowScript(id="a", sessions=(SessionScript(steps=(STEP,)),), submitted_us=7)

several = st.lists(workflows(), min_size=1, max_size=4, unique_by=lambda script: script.id)


@given(several, st.sampled_from(["s.jsonl", "s.jsonl.gz"]))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, scripts: list[WorkflowScript], name: str
) -> None:
    path = tmp_path_factory.mktemp("scripts") / name
    write_scripts(path, scripts)
    trace = read_scripts(path, strict=True)
    assert trace.scripts == scripts
    assert (trace.kind, trace.problems, trace.notes) == ("saga", [], [])
    first = path.read_bytes()
    write_scripts(path, scripts)
    assert path.read_bytes() == first


def test_the_file_is_json_lines_with_a_header(tmp_path: Path) -> None:
    write_scripts(tmp_path / "s.gz", [SCRIPT])
    header, line = gzip.decompress((tmp_path / "s.gz").read_bytes()).splitlines()
    assert header == b'{"format":"saga.scripts.v1"}'
    assert line.startswith(b'{"id":"a","sessions":[{"steps":[{"kept_tokens":0,"new_tokens":5,')


def test_scripts_that_break_a_law_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with pytest.raises(ValueError, match="'a' is used twice"):
        write_scripts(path, [SCRIPT, SCRIPT])
    with pytest.raises(ValueError, match="'e' has no session"):
        write_scripts(path, [WorkflowScript(id="e", sessions=())])
    assert not path.exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere/s\.jsonl: No such file"):
        write_scripts(tmp_path / "nowhere" / "s.jsonl", [SCRIPT])


def test_lines_that_break_a_law_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_scripts(path, [SCRIPT])
    header, good = path.read_text().splitlines()
    bad = good.replace('"new_tokens":5', '"new_tokens":0')
    path.write_text("\n".join([header, bad, good, header]))  # as after joining two files
    trace = read_scripts(path)
    assert trace.scripts == [SCRIPT]
    assert trace.problems == [
        Problem(2, "workflow 'a', session 0, step 0: new_tokens is 0, allowed is 1 or more")
    ]
