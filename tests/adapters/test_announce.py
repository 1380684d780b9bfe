"""Announcements: they arrive, and cost the application nothing when they cannot."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.adapters.stub import Quiet, Serving

from saga.adapters.announce import MAX_EVENTS, MAX_WAITING, REST_S, Announcer
from saga.adapters.identity import Answered


class Stub(Serving):
    """A gateway's events route."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, str | None, list[dict[str, Any]]]] = []
        self.status = 200
        outer = self

        class Handler(Quiet):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.posts.append((self.path, self.headers["x-api-key"], body["events"]))
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

        super().__init__(Handler)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for _, _, events in self.posts for event in events]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub().serving() as one:
        yield one


def answered(url: str, key: str = "k") -> Answered:
    return Answered(url, (("x-api-key", key),), "s")


def test_an_event_arrives_with_the_key_of_the_request(stub: Stub) -> None:
    announcer = Announcer()
    announcer.tell(answered(stub.url), "a/b ü", "tool.start", session="s", tool="bash", step=None)
    assert announcer.flush(5)
    ((path, key, events),) = stub.posts
    assert path.startswith("/v1/saga/workflows/a%2Fb%20%25C3%25BC~")
    assert path.endswith("/events")
    assert key == "k"
    assert events == [{"type": "tool.start", "session": "s", "tool": "bash"}]


def test_all_arrive_in_their_order_and_by_workflow(stub: Stub) -> None:
    announcer = Announcer()
    for number in range(3 * MAX_EVENTS):
        announcer.tell(answered(stub.url), str(number % 2), "step.end", step=str(number))
    assert announcer.flush(10)
    assert [int(event["step"]) for event in stub.events] == list(range(3 * MAX_EVENTS))
    for path, _, events in stub.posts:
        assert len(events) <= MAX_EVENTS
        assert {path.split("/")[4]} == {str(int(event["step"]) % 2) for event in events}


def test_nobody_is_told_what_no_gateway_answered(stub: Stub) -> None:
    announcer = Announcer()
    announcer.tell(None, "w", "final")
    announcer.tell(answered(stub.url), None, "final")
    assert announcer.flush(0)
    assert stub.posts == []


def test_a_gateway_that_says_nothing_costs_no_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        announcer = Announcer()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        for _ in range(20 * MAX_WAITING):
            announcer.tell(answered(url), "w", "final")
        assert time.monotonic() - began < 1.0
        assert announcer._waiting.qsize() <= MAX_WAITING
        assert not announcer.flush(0.01)


@pytest.mark.parametrize("status", [400, 401, 405, 500])
def test_a_gateway_that_refuses_is_left_alone_for_a_while(stub: Stub, status: int) -> None:
    now = [100.0]
    announcer = Announcer(now=lambda: now[0])

    def tell() -> int:
        announcer.tell(answered(stub.url), "w", "final")
        assert announcer.flush(5)
        return len(stub.posts)

    stub.status = status
    assert (tell(), tell()) == (1, 1)
    now[0] += REST_S
    assert tell() == 2


def test_a_workflow_that_is_over_is_no_refusal(stub: Stub) -> None:
    announcer = Announcer()
    stub.status = 404
    for expected in (1, 2):
        announcer.tell(answered(stub.url), "w", "final")
        assert announcer.flush(5)
        assert len(stub.posts) == expected


@pytest.mark.parametrize("url", ["", "nonsense", "http://127.0.0.1:1", "http://[", "http://a b/"])
def test_urls_that_lead_nowhere_are_nobodys_problem(url: str) -> None:
    announcer = Announcer()
    announcer.tell(answered(url, key="a\nb"), "w", "final")
    assert announcer.flush(5)
    announcer.tell(answered(url), "w", "final", what=object())
    assert announcer.flush(5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that begin as copies")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_copy_of_the_process_announces_for_itself(stub: Stub) -> None:
    announcer = Announcer()
    announcer.tell(answered(stub.url), "parent", "final")
    assert announcer.flush(5)
    child = os.fork()
    if not child:
        announcer.tell(answered(stub.url), "child", "final")
        os._exit(0 if announcer.flush(5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [path.split("/")[4] for path, _, _ in stub.posts] == ["parent", "child"]
