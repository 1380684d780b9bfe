"""A proxy that writes down what passes, so that clients can be watched and need no change."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import msgspec

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@dataclass
class Step:
    """One request: what the client sent, and how the gateway read it."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    """By lower-case name."""
    status: int = 0
    session: str | None = None
    source: str | None = None
    engine: str | None = None

    @property
    def tools(self) -> list[str]:
        """The names of the tools it may call."""
        return [tool.get("name") or tool["function"]["name"] for tool in self.body["tools"]]


@dataclass
class Tap:
    """``url`` stands for that of a gateway; ``steps`` in the order of their arrival."""

    url: str
    steps: list[Step] = field(default_factory=list)


@contextmanager
def tapped(upstream: str, *, broken: str = "(?!)") -> Iterator[Tap]:
    """A proxy in front of ``upstream`` on a free port, in threads of its own. Paths that are like
    ``broken`` (a pattern) lead nowhere."""
    is_broken = re.compile(broken).search

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            told = {name.lower(): value for name, value in self.headers.items()}
            step = Step(self.path, msgspec.json.decode(data), told)
            tap.steps.append(step)
            if is_broken(self.path):
                step.status = 500
                self.send_error(500)
                return
            connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=30)
            try:
                connection.request("POST", self.path, data, dict(self.headers))
                answer = connection.getresponse()
                step.status = answer.status
                step.session = answer.headers["x-saga-session-id"]
                step.source = answer.headers["x-saga-session-source"]
                step.engine = answer.headers["x-saga-engine"]
                self.pass_on(answer)
            finally:
                connection.close()

        def pass_on(self, answer: http.client.HTTPResponse) -> None:
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.end_headers()
            while part := answer.read1():
                self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tap = Tap(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield tap
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
