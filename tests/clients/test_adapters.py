"""Unchanged programs under ``saga run``: the gateway knows what they do, and they do the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import quote

import pytest
from tests.clients.adapters import APPS, App
from tests.clients.conftest import ENGINE
from tests.clients.tap import Step, Tap, tapped
from tests.clients.tools import sessions
from tests.gateway.live import Live, ask, engine, gateway

from saga.adapters import graph_of

each_app = pytest.mark.parametrize("app", APPS, ids=lambda app: app.name)


TAKEN_OUT = """\
import importlib, runpy, sys
from saga.adapters import install, uninstall
install()
importlib.import_module(sys.argv[1])
uninstall()
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def run(app: App, url: str, how: Literal["hooked", "plain", "taken out"] = "hooked") -> str:
    """What the program prints."""
    environment = {**os.environ, "NO_PROXY": "*", "OPENAI_BASE_URL": f"{url}/v1"}
    environment.pop("OPENAI_API_KEY", None)  # nothing is to be sent anywhere else
    command = [sys.executable, str(app.path)]
    if how == "hooked":
        del environment["OPENAI_BASE_URL"]
        command = [sys.executable, "-m", "saga.cli", "run", "--gateway", url, "--", *command]
    elif how == "taken out":
        command = [sys.executable, "-c", TAKEN_OUT, app.package, str(app.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != ""
    return done.stdout


def requests(tap: Tap) -> list[Step]:
    return [step for step in tap.steps if step.path == "/v1/chat/completions"]


def announced(tap: Tap) -> list[dict[str, Any]]:
    return [event for step in tap.steps for event in step.body.get("events", [])]


@each_app
def test_the_gateway_knows_the_program(live: Live, tap: Tap, app: App) -> None:
    run(app, tap.url)
    asked = requests(tap)
    apart = sessions(asked)
    assert {step.source for step in asked} == {"saga"}
    assert [len(steps) for steps in apart] == app.sessions
    assert [steps[0].headers["x-saga-agent"] for steps in apart] == app.agents
    names = [steps[0].headers["x-saga-session-id"] for steps in apart]
    parents = [None if number is None else names[number] for number in app.parents]
    assert [steps[0].headers.get("x-saga-parent-id") for steps in apart] == parents
    (workflow,) = {step.headers["x-saga-workflow-id"] for step in asked}
    assert app.workflow in (None, workflow)
    for steps in apart:
        assert len({step.engine for step in steps}) == 1

    events = announced(tap)
    for kind in ("tool.start", "tool.end"):
        assert {event["tool"] for event in events if event["type"] == kind} == app.tools
    told = {event["step"] for event in events if event["type"] == "step.end"}
    assert app.steps <= told
    assert {event["session"] for event in events if "session" in event} <= set(names)

    status, known, _ = ask(f"{live.url}/v1/saga/workflows/{quote(workflow, safe='')}")
    assert (events[-1]["type"] == "final", status) == (app.final, 404 if app.final else 200)
    if not app.final:
        assert {session["id"] for session in known["sessions"]} == set(names)
        assert {session["step"] for session in known["sessions"]} <= told


@each_app
def test_the_program_does_the_same(app: App) -> None:
    """With an engine and no gateway, with a gateway that takes no announcements, and after the
    hooks were taken out, when it also says nothing."""
    with (
        engine(**ENGINE) as (direct, _),
        gateway(engines=1, engine_options=ENGINE) as through,
        tapped(direct) as alone,
        tapped(through.url, broken="/events$") as deaf,
        tapped(direct) as silent,
        ThreadPoolExecutor(4) as pool,
    ):
        plain = pool.submit(run, app, direct, "plain")
        others = [pool.submit(run, app, tap.url) for tap in (alone, deaf)]
        others.append(pool.submit(run, app, silent.url, "taken out"))
        assert [other.result() for other in others] == [plain.result()] * 3
    assert announced(alone) == []
    assert len(announced(deaf)) > 0
    assert not [name for step in silent.steps for name in step.headers if "saga" in name]


@each_app
@pytest.mark.filterwarnings("ignore")  # a framework's own, while it is imported
def test_the_gateway_takes_the_graph(live: Live, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{live.url}/v1")
    graph = graph_of(program(app).workflow())
    status, told, _ = ask(f"{live.url}/v1/saga/graphs/{app.name}", graph, method="PUT")
    assert status in (200, 201)
    assert told["mean_steps"] is not None
    listed = ask(f"{live.url}/v1/saga/graphs")[1]["graphs"]
    (kept,) = (entry["graph"] for entry in listed if entry["name"] == app.name)
    assert len(kept["nodes"]) == len(graph["nodes"]) > 1


def program(app: App) -> Any:
    """Its module."""
    spec = importlib.util.spec_from_file_location(app.path.stem, app.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
