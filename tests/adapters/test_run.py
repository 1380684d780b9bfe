"""``saga run``: programs with the hooks in them that otherwise run as ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saga.adapters.outgoing import BASE_URL
from saga.cli.run import STARTUP, environment_of

PYTHON = sys.executable
TELL = "import httpx2; print(hasattr(httpx2.Client.send, '__wrapped__'))"


def run(*program: str, options: tuple[str, ...] = (), **more: Any) -> Any:
    command = [PYTHON, "-m", "saga.cli", "run", *options, "--", *program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def told(*program: str, **more: Any) -> str:
    done = run(*program, **more)
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout.strip())


def with_path(path: Path) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [before, str(path)]))}


def test_a_program_has_the_hooks(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(TELL)
    assert told(PYTHON, "-c", TELL) == "True"
    assert told(PYTHON, str(script)) == "True"
    assert told(PYTHON, "-m", "app", env=with_path(tmp_path)) == "True"


def test_a_console_script_and_programs_that_it_starts_have_them(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TELL!r}], check=True)"
    script.write_text(f"#!{PYTHON}\n{start}\n")
    script.chmod(0o755)
    assert told(str(script)) == "True"


def test_without_it_there_are_no_hooks() -> None:
    done = subprocess.run([PYTHON, "-c", TELL], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_the_next_sitecustomize_runs_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.mine = __name__")
    said = told(PYTHON, "-c", "print(mine); import sitecustomize; print(sitecustomize.__file__)",
                env=with_path(tmp_path))  # fmt: skip
    assert said.split() == ["sitecustomize", str(tmp_path / "sitecustomize.py")]


def test_an_interpreter_without_saga_has_them(tmp_path: Path) -> None:
    """None of the packages of this environment is there: a stand-in for the client is."""
    (tmp_path / "httpx2.py").write_text(
        "class Client:\n    def send(self, request): ...\nclass AsyncClient(Client): ..."
    )
    bare = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {TELL}; import saga.adapters"
    environment = environment_of({"PATH": os.environ["PATH"]}, None)
    done = subprocess.run(
        [str(bare), "-S", "-c", f"import sys; sys.path.insert(0, {str(STARTUP)!r}); "
         f"import sitecustomize; {program}; print('msgspec' in sys.modules)"],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["True", "False"], "")


def test_the_code_of_the_program_is_passed_on() -> None:
    assert run(PYTHON, "-c", "import sys; sys.exit(7)").returncode == 7
    assert run("sh", "-c", "exit 3").returncode == 3


def test_options_of_the_program_are_its_own() -> None:
    said = told(PYTHON, "-c", "import sys; print(sys.argv[1:])", "--gateway", "x", "--", "-h")
    assert said == "['--gateway', 'x', '--', '-h']"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_program(number: signal.Signals) -> None:
    program = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\n"
        "time.sleep(30)"
    )
    command = [PYTHON, "-m", "saga.cli", "run", "--", PYTHON, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 5
        assert time.monotonic() - began < 20


def test_sdks_are_led_to_the_gateway() -> None:
    told = environment_of({"A": "1"}, "http://saga:8400/v1/")
    assert told == {
        "A": "1",
        "PYTHONPATH": str(STARTUP),
        BASE_URL: "http://saga:8400",
        "OPENAI_BASE_URL": "http://saga:8400/v1",
        "ANTHROPIC_BASE_URL": "http://saga:8400",
    }


def test_what_the_user_set_stays() -> None:
    before = {"OPENAI_BASE_URL": "http://mine/v1", "PYTHONPATH": "/mine"}
    told = environment_of(before, "http://saga:8400")
    assert told["OPENAI_BASE_URL"] == "http://mine/v1"
    assert told["PYTHONPATH"] == os.pathsep.join([str(STARTUP), "/mine"])
    assert BASE_URL not in environment_of(before, None)


@pytest.mark.parametrize(
    ("options", "program", "words"),
    [
        ((), (), "no program"),
        ((), ("there-is-no-such-program",), "there-is-no-such-program"),
        (("--gateway", "localhost:8400"), ("true",), "--gateway localhost:8400"),
    ],
)
def test_mistakes_are_told(options: tuple[str, ...], program: tuple[str, ...], words: str) -> None:
    done = run(*program, options=options)
    assert done.returncode == 2
    assert words in done.stderr
