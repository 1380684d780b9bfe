"""``saga run``: a program, unchanged, whose agents say whose step each request is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import saga
from saga.adapters.outgoing import BASE_URL
from saga.cli.common import Commands

STARTUP: Final = Path(saga.__file__).parent / "adapters" / "startup"
EXAMPLE: Final = "saga run --gateway http://127.0.0.1:8400 -- python app.py"


def add(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="run a Python program with the hooks into agent frameworks",
        description="Runs a program with the hooks into agent frameworks and model SDKs; also in "
        "the Python programs that it starts.",
        epilog=f"example: {EXAMPLE}",
    )
    run.add_argument(
        "--gateway",
        metavar="URL",
        help="where model SDKs send requests, unless OPENAI_BASE_URL or ANTHROPIC_BASE_URL is set",
    )
    run.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...")
    run.set_defaults(call=_run)


def _run(arguments: argparse.Namespace) -> int:
    program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not program:
        raise ValueError(f"no program to run: {EXAMPLE}")
    environment = environment_of(os.environ, arguments.gateway)
    try:
        # The program takes the place of this process, and so gets its signals and gives its code.
        os.execvpe(program[0], program, environment)
    except OSError as error:
        raise OSError(f"{program[0]}: {error.strerror}") from None


def environment_of(before: Mapping[str, str], gateway: str | None) -> dict[str, str]:
    """The environment of the program: ``before``, and what brings the hooks and the gateway."""
    told = dict(before)
    paths = [str(STARTUP), *filter(None, [told.get("PYTHONPATH")])]
    told["PYTHONPATH"] = os.pathsep.join(paths)
    if gateway is not None:
        url = _checked(gateway)
        told[BASE_URL] = url
        told.setdefault("OPENAI_BASE_URL", f"{url}/v1")
        told.setdefault("ANTHROPIC_BASE_URL", url)
    return told


def _checked(url: str) -> str:
    """Without what may follow the gateway's address; ValueError if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--gateway {url}: not a URL like http://127.0.0.1:8400")
    return url.rstrip("/").removesuffix("/v1")
