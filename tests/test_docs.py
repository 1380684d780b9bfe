"""The documents are executed, so that they cannot rot.

Each document runs in a directory of its own, with a copy of ``examples/``. Its fenced blocks run
in order: ``python`` blocks share one namespace; of a ``console`` block each ``$ saga ...`` line is
a command that must exit with 0. ``no-run`` after the language leaves a block out.
"""

import os
import re
import shutil
import subprocess
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()),
    *sorted(ROOT.glob("docs/*.md")),
]
FENCED = re.compile(
    r"^(?P<indent>[ ]*)(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
COMMAND_TIMEOUT_S = 120


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the document it begins on."""

    language: str
    text: str
    line: int


def runnable_blocks(markdown: str) -> Iterator[Block]:
    """The blocks that name a language and do not say ``no-run``."""
    for match in FENCED.finditer(markdown):
        words = match["info"].split()
        if words and "no-run" not in words[1:]:
            line = markdown.count("\n", 0, match.start("body")) + 1
            yield Block(words[0], textwrap.dedent(match["body"]), line)


def saga_commands(console: str) -> list[str]:
    """The commands after ``$`` that run ``saga``; a backslash continues a line."""
    joined = console.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if re.match(r"\$ saga\b", line)]


def run_command(command: str, where: str) -> None:
    """Run one command in the current directory; it must exit with 0."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, f"{where}: `{command}` exits {done.returncode}\n{done.stderr}"


def run_document(markdown: str, name: str) -> None:
    """Run the blocks of a document in order; errors point at the document's own lines."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in runnable_blocks(markdown):
        match block.language:
            case "python":
                source = "\n" * (block.line - 1) + block.text
                exec(compile(source, name, "exec"), namespace)
            case "console":
                for command in saga_commands(block.text):
                    run_command(command, f"{name}:{block.line}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_document_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (ROOT / "examples").is_dir():
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    run_document(path.read_text(encoding="utf-8"), str(path))


SAMPLE = """\
Some text, and `inline` code.

```python
x = 1
```

1. A list:
   ```python
   if x:
       y = x
   ```

```console no-run
$ saga slow
```

````markdown
```python
raise SystemExit("a quoted block is no block")
```
````

```
no language
```

```console
$ pip install saga-serve
$ saga run preset \\
    --seed 1
result: 3
$ sagacious
```
"""


def test_blocks_are_found_with_their_lines() -> None:
    assert list(runnable_blocks(SAMPLE)) == [
        Block("python", "x = 1\n", 4),
        Block("python", "if x:\n    y = x\n", 9),
        Block("markdown", '```python\nraise SystemExit("a quoted block is no block")\n```\n', 18),
        Block(
            "console",
            "$ pip install saga-serve\n$ saga run preset \\\n    --seed 1\n"
            "result: 3\n$ sagacious\n",
            28,
        ),
    ]


def test_only_saga_commands_run() -> None:
    *_, console = runnable_blocks(SAMPLE)
    assert [command.split() for command in saga_commands(console.text)] == [
        ["saga", "run", "preset", "--seed", "1"]
    ]


def test_python_blocks_share_a_namespace() -> None:
    run_document("```python\nx = 2\n```\n\n```python\nassert x == 2\n```\n", "good.md")


def test_failing_python_points_at_its_line() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run_document("# Title\n\n```python\n1 / 0\n```\n", "bad.md")
    last = raised.traceback[-1]
    assert (last.frame.code.raw.co_filename, last.lineno + 1) == ("bad.md", 4)


def test_failing_command_fails_the_document() -> None:
    with pytest.raises(AssertionError, match=r"bad\.md:2: `saga no-such-command` exits \d"):
        run_document("```console\n$ saga no-such-command\n```\n", "bad.md")
