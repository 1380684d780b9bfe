from pathlib import Path

import pytest

from saga.traces import Problem, check_script, read_scripts

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def write(folder: Path, *lines: str) -> Path:
    path = folder / "azure.csv"
    path.write_text("\r\n".join(lines))
    return path


def test_every_row_is_a_workflow_of_one_step(tmp_path: Path) -> None:
    rows = ("2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109")
    first, second = read_scripts(write(tmp_path, HEADER, *rows), strict=True).scripts
    for script in (first, second):
        check_script(script)
    assert (first.submitted_us, second.submitted_us) == (0, 4_314_579)
    (step,) = second.sessions[0].steps
    assert (step.prompt_tokens, step.output_tokens, step.gap_us) == (396, 109, 0)
    assert first.id != second.id


def test_json_lines_hold_the_same(tmp_path: Path) -> None:
    rows = write(tmp_path, HEADER, "2024-05-10 00:00:01+00:00,3,4", "2024-05-10 00:00:03,5,0")
    lines = tmp_path / "azure.jsonl"
    lines.write_text('\n{"t": 0.0, "in": 3, "out": 4}\n{"t": 2.0, "in": 5, "out": 0}')
    from_rows, from_lines = read_scripts(rows), read_scripts(lines)
    assert from_rows.scripts == from_lines.scripts
    assert from_rows.notes == ["1 steps without output, played with 1 token"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("yesterday,3,4", "TIMESTAMP is 'yesterday': Expected a date and a time"),
        ("2023-11-16 18:15:47,abc,4", "in is 'abc': Expected `int`, got `str`"),
        ("2023-11-16 18:15:47,-3,4", "in is '-3': Expected `int` >= 1"),
        ("2023-11-16 18:15:47,3", f"2 columns: Expected {HEADER}"),
    ],
)
def test_a_broken_row_is_a_problem(tmp_path: Path, row: str, reason: str) -> None:
    trace = read_scripts(write(tmp_path, HEADER, row, "2023-11-16 18:15:46,374,44"))
    assert len(trace.scripts) == 1
    assert trace.problems == [Problem(2, reason)]
