"""``saga doctor``: what engines have of all that SAGA can use."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import saga
from saga.cli.common import Commands, check_writable, prepared

if TYPE_CHECKING:
    from saga.gateway.doctor import Diagnosis
    from saga.gateway.findings import Finding

KINDS = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "saga": "an engine with SAGA's control routes",
    "openai": "an OpenAI-compatible server",
    "gateway": "a SAGA gateway",
}
INDENT = 11
"""Of what is said about a finding."""
WIDEST = 100
LONGEST = 1_000
"""Letters of one thing that is said; all of them are in the document."""


def add(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what engines have of all that SAGA can use, and what brings the rest",
        description="Asks each engine, or gateway, what it is and can do. To see what its answers "
        "and its KV events say, it asks for two or three tokens. Exits with 1 if an address cannot "
        "be used.",
    )
    doctor.add_argument("url", nargs="+", metavar="URL", help="as in http://gpu0:8000")
    doctor.add_argument("--api-key", metavar="KEY", help="or env:NAME, to take it from a variable")
    doctor.add_argument("--no-requests", action="store_true", help="do not ask for tokens")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    doctor.set_defaults(call=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from saga.gateway.doctor import advice

    urls = list(dict.fromkeys(map(_address, arguments.url)))
    key = api_key(arguments.api_key, os.environ)
    if arguments.json:
        check_writable(prepared(arguments.json))
    diagnoses = asyncio.run(_diagnose(urls, key, requests=not arguments.no_requests))
    advised = advice(diagnoses)
    print("\n".join(lines(diagnoses, advised, _width())))
    if arguments.json:
        document = {
            "version": saga.__version__,
            "addresses": [
                {"usable": one.problem is None, **msgspec.to_builtins(one)} for one in diagnoses
            ],
            "advice": advised,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if any(one.problem is not None for one in diagnoses) else 0


async def _diagnose(urls: Sequence[str], key: str | None, *, requests: bool) -> list[Diagnosis]:
    from saga.gateway.doctor import diagnose
    from saga.gateway.upstream import Upstream

    async with Upstream() as upstream:
        work = (diagnose(upstream, url, key, requests=requests) for url in urls)
        return await asyncio.gather(*work)


def _address(text: str) -> str:
    from saga.gateway.discovery import engine_url

    if "@" in text or "?" in text:  # it may hold a secret, which is not repeated
        raise ValueError("an address has no password and no query: a key goes into --api-key")
    return engine_url(text)


def api_key(given: str | None, environ: Mapping[str, str]) -> str | None:
    """The key itself. Raises ValueError, without repeating it."""
    if given is None:
        return None
    name = given.removeprefix("env:")
    key = environ.get(name, "") if given.startswith("env:") else given
    if not key:
        raise ValueError(
            f"--api-key: variable {name} is not set" if name != given else "--api-key: it is empty"
        )
    if not key.isprintable() or " " in key:
        raise ValueError("--api-key: a key has no spaces and no control codes")
    return key


# ---- in words


def lines(diagnoses: Sequence[Diagnosis], advised: Sequence[str], width: int) -> Iterator[str]:
    """The whole page. What engines say of themselves is shown without control codes."""
    for number, one in enumerate(diagnoses):
        if number:
            yield ""
        yield from _wrapped(f"{one.url}: {_headline(one)}", width)
        for finding in one.findings:
            yield from _told(finding, width)
    for text in advised:
        yield ""
        yield from _wrapped(text, width)


def _headline(one: Diagnosis) -> str:
    what = "" if one.kind is None else KINDS[one.kind] + (f" {one.version}" if one.version else "")
    if one.problem is not None:
        return (
            f"{what}; CANNOT BE USED: {one.problem}" if what else f"CANNOT BE USED: {one.problem}"
        )
    if one.kind == "gateway":
        number = len(one.findings)
        return f"{what}, in front of {number} engine{'s' if number != 1 else ''}"
    missing = sum(finding.answer == "no" for finding in one.findings)
    return f"{what}: can be used; {missing or 'nothing'} missing"


def _told(finding: Finding, width: int) -> Iterator[str]:
    found = f": {finding.found}" if finding.found else ""
    yield from _wrapped(f"{finding.what}{found}", width, f"  {finding.answer:<{INDENT - 2}}")
    yield from _wrapped(finding.means, width, " " * INDENT)
    if finding.fix is not None:
        yield from _wrapped(f"-> {finding.fix}", width, " " * INDENT)


def _wrapped(text: str, width: int, begin: str = "") -> list[str]:
    """Options stay whole, even where they are too long."""
    return textwrap.wrap(
        "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST]),
        width,
        initial_indent=begin,
        subsequent_indent=" " * max(4, len(begin)),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _width() -> int:
    if not sys.stdout.isatty():
        return WIDEST
    return max(60, min(WIDEST, shutil.get_terminal_size().columns))
