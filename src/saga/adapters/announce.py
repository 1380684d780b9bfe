"""Tells a gateway what the application does between two steps, without waiting for it.

One background thread sends what lies in a bounded queue. A gateway that is full, away or of an
older release costs announcements and nothing else.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final
from urllib.parse import quote, urlsplit

from saga import wire
from saga.adapters.identity import Answered, text
from saga.adapters.silence import note

MAX_WAITING: Final = 256
MAX_EVENTS: Final = 64
"""In one request; the gateway takes no more."""
TIMEOUT_S: Final = 2.0
REST_S: Final = 30.0
"""For which a gateway that failed is told nothing."""
LAST_WORD_S: Final = 0.5
"""For which the end of the application waits at most."""


@dataclass(frozen=True, slots=True)
class _Told:
    url: str
    credentials: tuple[tuple[str, str], ...]
    workflow: str
    event: dict[str, Any]

    @property
    def address(self) -> tuple[str, tuple[tuple[str, str], ...], str]:
        return self.url, self.credentials, self.workflow


class Announcer:
    """Its methods return at once and never fail."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)  # threads stay behind

    def _begin(self) -> None:
        self._waiting: queue.Queue[_Told] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._rests: dict[str, float] = {}
        """Until when, by URL; of few gateways."""

    def tell(
        self, answered: Answered | None, workflow: str | None, kind: str, /, **what: Any
    ) -> None:
        """An event of a workflow, for the gateway that answered its last step."""
        if answered is None or not workflow:
            return
        try:
            event = {"type": kind, **{name: text(value) for name, value in what.items() if value}}
            told = _Told(answered.url, answered.credentials, text(workflow), event)
            self._waiting.put_nowait(told)
            self._start()
        except queue.Full:
            pass
        except Exception as error:
            note("an announcement", error)

    def flush(self, seconds: float) -> bool:
        """Waits until all is told; False if it is not by then."""
        ends = time.monotonic() + seconds
        while self._waiting.unfinished_tasks:
            if time.monotonic() > ends:
                return False
            time.sleep(0.005)
        return True

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="saga", daemon=True)
                self._thread.start()
                atexit.register(self.flush, LAST_WORD_S)

    def _run(self) -> None:
        waiting = self._waiting
        while True:
            some = [waiting.get()]
            while len(some) < MAX_EVENTS and not waiting.empty():
                some.append(waiting.get())
            for (url, credentials, workflow), told in groupby(some, lambda one: one.address):
                self._send(url, credentials, workflow, [one.event for one in told])
            for _ in some:
                waiting.task_done()

    def _send(
        self,
        url: str,
        credentials: tuple[tuple[str, str], ...],
        workflow: str,
        events: list[dict[str, Any]],
    ) -> None:
        if self._rests.get(url, 0.0) > self._now():
            return
        try:
            status = _post(url, credentials, workflow, events)
            if status < 400 or status == 404:  # 404: the workflow is over
                return
        except Exception as error:
            note("sending an announcement", error)
        if len(self._rests) > MAX_WAITING:
            self._rests.clear()
        self._rests[url] = self._now() + REST_S


def _post(
    url: str,
    credentials: tuple[tuple[str, str], ...],
    workflow: str,
    events: list[dict[str, Any]],
) -> int:
    """The status. Straight to the gateway, and by no client that an adapter hooks into."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=TIMEOUT_S)
    try:
        path = f"{parts.path}{wire.CONTROL}/workflows/{quote(workflow, safe='')}/events"
        headers = {"content-type": "application/json", **dict(credentials)}
        connection.request("POST", path, json.dumps({"events": events}), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


announcer: Final = Announcer()
