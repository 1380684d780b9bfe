"""``saga doctor``: what it says, what it writes, and how it exits."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.live import engine, gateway
from tests.gateway.patient import Vllm
from tests.gateway.servers import refusing, serve

import saga
from saga.cli import main
from saga.cli.doctor import INDENT, api_key, lines
from saga.gateway.doctor import Diagnosis
from saga.gateway.findings import Finding

KEY = "sk-of-nobody-else"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said, wherever lines end."""
        return " ".join(self.out.split())


Doctor = Callable[..., Said]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    def call(*arguments: str | Path) -> Said:
        try:
            code: Any = main(["doctor", *map(str, arguments)])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


@contextmanager
def served(server: Vllm) -> Iterator[str]:
    """In a thread of its own, as the command has its own loop."""
    begun: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def run() -> None:
        stop = asyncio.Event()
        async with serve(server.handle) as url:
            begun.append((url, asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(10)
    url, loop, stop = begun[0]
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def test_an_emulated_engine_can_be_used(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "made for it" / "doctor.json"
    with engine(kv_events="tcp://127.0.0.1:0") as (url, app):
        said = doctor(url, "--json", file)
        app.close()
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{url}: vLLM {saga.__version__}: can be used; ")
    document = json.loads(file.read_text())
    assert (document["version"], document["advice"]) == (saga.__version__, [])
    (one,) = document["addresses"]
    assert (one["usable"], one["url"], one["kind"], one["problem"]) == (True, url, "vllm", None)
    answers = {finding["what"]: finding["answer"] for finding in one["findings"]}
    lacks = {what for what, answer in answers.items() if answer != "yes"}
    assert lacks == {"batch size", "host tier", "shared tier", "priority scheduling"}
    assert one["figures"]["num_requests_running"] == 0
    for what, answer in answers.items():
        assert f"\n  {answer:<{INDENT - 2}}{what}" in said.out


def test_one_address_of_several_that_cannot_be_used(doctor: Doctor) -> None:
    with refusing() as wrong, engine() as (url, _):
        said = doctor(wrong, url, f"{url}/", "--no-requests")
    assert said.code == 1
    first, second = said.out.split("\n\n")
    assert first.startswith(f"{wrong}: CANNOT BE USED: nothing listens at ")
    assert second.startswith(f"{url}: vLLM"), "the same address is asked once"


def test_a_gateway(doctor: Doctor) -> None:
    with gateway(engines=1) as live:
        said = doctor(live.url)
    assert said.code == 0
    assert f"a SAGA gateway {saga.__version__}, in front of 1 engine\n" in said.out
    assert "It publishes no KV events" in said.words


def test_an_engine_that_does_not_serve(doctor: Doctor) -> None:
    with served(Vllm(statuses={"/v1/chat/completions": 500})) as url:
        said = doctor(url)
    assert said.code == 1
    problem = "it does not serve a request: it answers 500: no such thing"
    assert said.words.startswith(f"{url}: vLLM 0.33.0; CANNOT BE USED: {problem} yes models")


def test_engines_of_different_models(doctor: Doctor) -> None:
    with engine(model="a") as (one, _), engine(model="b") as (other, _):
        said = doctor(one, other, "--no-requests")
    assert said.code == 0
    assert "\n\nThese engines list different models." in said.out


@pytest.mark.parametrize("right", [True, False])
def test_a_key_is_used_and_not_shown(
    doctor: Doctor, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", KEY)
    file = tmp_path / "doctor.json"
    with engine(api_key=KEY if right else "another") as (url, _):
        said = doctor(url, "--api-key", "env:ENGINE_KEY", "--json", file)
        without = doctor(url)
    assert said.code == (0 if right else 1)
    assert ("it refuses the API key" in said.out) is not right
    assert KEY not in said.out + said.err + file.read_text()
    assert (without.code, "it wants an API key: --api-key" in without.out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["gpu0:8000"], "it names no host"),
        (["ftp://gpu0"], "starts with neither http:// nor https://"),
        (["http://gpu0/v1"], "leave out /v1"),
        (["http://gpu0:99999"], "Port out of range"),
        ([f"http://me:{KEY}@gpu0"], "a key goes into --api-key"),
        ([f"http://gpu0/?key={KEY}"], "a key goes into --api-key"),
        (["http://gpu0", "--api-key", "env:NOT_SET_AT_ALL"], "variable NOT_SET_AT_ALL is not set"),
        (["http://gpu0", "--api-key", ""], "it is empty"),
        (["http://gpu0", "--api-key", f"{KEY}\r\nx: y"], "no spaces and no control codes"),
        (["http://gpu0", "--json", "/"], "cannot be written"),
        ([], "required: URL"),
    ],
)
def test_mistakes_in_what_was_asked(doctor: Doctor, arguments: list[str], reason: str) -> None:
    said = doctor(*arguments)
    assert (said.code, said.out) == (2, "")
    assert reason in said.err
    assert KEY not in said.err


@given(st.text(min_size=1))
def test_a_key_that_is_not_one_is_not_repeated(text: str) -> None:
    try:
        assert api_key(text, {}) == text
    except ValueError as error:
        spoken = "--api-key: a key has no spaces and no control codes"
        assert text.startswith("env:") or str(error) == spoken


TEXT = st.lists(st.text(max_size=20), max_size=20).map(" ".join)


@given(texts=st.tuples(TEXT, TEXT, TEXT, TEXT), width=st.integers(60, 100))
def test_the_page_is_plain_text_of_its_width(texts: tuple[str, ...], width: int) -> None:
    what, found, means, fix = texts
    finding = Finding(what=what, answer="no", found=found, means=means, fix=fix)
    one = Diagnosis(url="http://gpu0", kind="vllm", version=what, findings=(finding,))
    for line in lines([one, one], [means], width):
        assert line.isprintable()
        assert len(line) <= width
