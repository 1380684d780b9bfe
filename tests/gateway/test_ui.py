"""The live view over HTTP: the page, its data, who sees what, and that ids never become markup."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.live import Live, ask, chat, gateway

from saga.gateway.fairness import EVERY_US
from saga.gateway.keys import generate_key

CHROMIUM = Path("/usr/bin/chromium")
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
MARKUP_SINKS = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")


def step(live: Live, session: str, key: str | None = None, **headers: str) -> None:
    """One request of a session that is answered."""
    headers |= {"x-saga-session-id": session}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    status, _, _ = ask(f"{live.url}/v1/chat/completions", chat("hello"), headers=headers)
    assert status == 200


def picture(live: Live, key: str | None = None, path: str = "live") -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"} if key is not None else {}
    status, told, _ = ask(f"{live.url}/v1/saga/{path}", headers=headers)
    assert status == 200
    assert isinstance(told, dict)
    return told


def sample(live: Live) -> None:
    """Takes one of how tenants fare, as if its time had come."""
    latest = picture(live, path="fairness")["at_us"]
    at = max([*latest, live.gateway.host.now]) + EVERY_US
    live.told(lambda gateway: gateway.fairness.take(at))


def test_the_page_is_one_file_that_needs_nothing_else() -> None:
    html = files("saga.gateway").joinpath("ui.html").read_text()
    addresses = set(re.findall(r"https?://[^'\"\s)]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a name of a language, nothing to fetch"
    assert [sink for sink in MARKUP_SINKS if sink in html] == []


def test_the_page_is_served_to_anybody_and_may_run_its_own_script_only() -> None:
    html = files("saga.gateway").joinpath("ui.html").read_bytes()
    with gateway(engines=0) as live:
        for path in ("/ui", "/ui/"):
            status, body, headers = ask(f"{live.url}{path}")
            assert (status, body) == (200, html)
            lower = {name.lower(): value for name, value in headers.items()}
            told = lower["content-security-policy"].split("; ")
            policy = dict(part.split(" ", 1) for part in told)
            assert policy["default-src"] == "'none'"
            assert policy["connect-src"] == "'self'"
            [script] = re.findall(rb"<script>(.*?)</script>", html, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
            assert policy["script-src"] == f"'sha256-{digest}'"
        assert ask(f"{live.url}/ui/other")[0] != 200


def test_the_picture_tells_engines_sessions_decisions_and_totals() -> None:
    with gateway() as live:
        step(live, "main", **{"x-saga-workflow-id": "task", "x-saga-agent": "coder"})
        last = {"x-saga-workflow-id": "task", "x-saga-parent-id": "main", "x-saga-final": "1"}
        step(live, "helper", **last)
        told, counts = picture(live), live.check_nothing_is_lost()
    assert {name: told["totals"][name] for name in counts} == counts
    assert told["totals"]["held"] == 0
    assert (told["preset"], told["tenant"]) == ("saga", None)
    assert told["rates"]["answers"] == 2
    assert told["rates"]["output_tokens_per_s"] > 0
    engines = {engine["name"]: engine for engine in told["engines"]}
    assert [engine["state"] for engine in engines.values()] == ["up", "up"]
    assert sum(engine["kv_idle_tokens"] for engine in engines.values()) > 0
    lanes = {lane["session"]: lane for lane in told["lanes"]}
    assert lanes["helper"]["parent"] == "main"
    assert {lane["workflow"] for lane in lanes.values()} == {"task"}
    assert lanes["main"]["agent_type"] == "coder"
    assert [span[1] for span in lanes["main"]["spans"]] == ["reasoning", "acting"]
    assert [span[1] for span in lanes["helper"]["spans"]] == ["reasoning", "acting", "done"]
    assert lanes["main"]["spans"][0][2] in engines
    assert {entry["action"] for entry in told["decisions"]} >= {"Dispatch"}


def test_a_tenant_sees_its_own_and_an_administrator_everything(tmp_path: Path) -> None:
    keys = {name: generate_key() for name in ("admin", "blue", "red")}
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"keys:\n  - {{tenant: blue, hash: '{keys['blue'][1]}'}}\n"
        f"  - {{tenant: red, hash: '{keys['red'][1]}'}}\n"
        f"admin:\n  - {{hash: '{keys['admin'][1]}'}}\n"
    )
    with gateway(settings={"auth.keys_file": path}) as live:
        step(live, "secret-of-blue", keys["blue"][0], **{"x-saga-final": "1"})
        step(live, "secret-of-red", keys["red"][0])
        assert ask(f"{live.url}/v1/saga/live")[0] == 401
        assert ask(f"{live.url}/ui")[0] == 200
        blue, red, everything = (picture(live, keys[name][0]) for name in ("blue", "red", "admin"))
    assert (blue["tenant"], red["tenant"], everything["tenant"]) == ("blue", "red", None)
    assert "of-red" not in str(blue)
    assert "of-blue" not in str(red)
    assert "of-red" in str(everything["decisions"])
    assert "of-blue" in str(everything["lanes"])
    for told, count in ((blue, 1), (red, 1), (everything, 2)):
        assert told["totals"]["arrived"] == told["totals"]["finished"] == count
        assert told["rates"]["answers"] == len(told["lanes"]) == count
    finished = [told["tct"]["workflows"] for told in (blue, red, everything)]
    assert finished == [1, 0, 1]


class _Elements(HTMLParser):
    """What a page consists of: how often which tags, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no browser")
def test_a_browser_shows_an_evil_name_as_text(tmp_path: Path) -> None:
    with gateway() as live:
        step(live, EVIL, **{"x-saga-workflow-id": EVIL, "x-saga-agent": EVIL})
        html = dom(f"{live.url}/ui", tmp_path)
    page = _Elements(html)
    assert EVIL in page.text, "the table of decisions shows it as it is"
    assert page.text.count("127.0.0.1") > 2, "engines are shown"
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert "<title>SAGA</title>" in html


@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no browser")
def test_a_browser_shows_how_tenants_fare(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    with gateway(settings={"identity.trust_tenant_header": True}) as live:
        for tenant in ("blue", evil, "blue"):
            step(live, "one", **{"x-saga-tenant": tenant})
            sample(live)
        html = dom(f"{live.url}/ui", tmp_path)
    page = _Elements(html)
    assert "img" not in page.tags
    rows = html.partition('id="tenants"')[2].partition("</tbody>")[0]
    assert rows.count("<tr>") == 2 and rows.count("<path") == 8
    assert rows.index("&lt;img") < rows.index("blue"), "by name"
    assert "(50.0 %)" in rows and 'd="M' in rows


def dom(url: str, profile: Path) -> str:
    """What a headless browser has made of a page after some seconds of its own time."""
    arguments = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        f"--user-data-dir={profile} --virtual-time-budget=3000 --dump-dom"
    )
    done = subprocess.run(
        [str(CHROMIUM), *arguments.split(), url], capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode()
