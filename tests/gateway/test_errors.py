"""Errors in the forms that clients dispatch on."""

from __future__ import annotations

import msgspec
import pytest

from saga.gateway import errors
from saga.gateway.errors import Dialect, GatewayError

DIALECTS: tuple[Dialect, ...] = ("openai", "anthropic")
STATUSES = (400, 401, 403, 404, 408, 409, 413, 422, 426, 429, 431, 500, 502, 503, 504)


def test_the_openai_form() -> None:
    error = GatewayError(404, "not here", param="model")
    assert errors.document(error, "openai") == {
        "error": {"message": "not here", "type": "NotFoundError", "param": "model", "code": 404}
    }


def test_the_anthropic_form() -> None:
    assert errors.document(GatewayError(429, "wait"), "anthropic") == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "wait"},
    }


def test_what_programs_tell_an_error_by() -> None:
    error = GatewayError(422, "too late", code="deadline_unreachable")
    openai, anthropic = (errors.document(error, dialect)["error"] for dialect in DIALECTS)
    assert (openai["type"], openai["code"]) == ("UnprocessableEntityError", "deadline_unreachable")
    assert anthropic == {"type": "deadline_unreachable", "message": "too late"}


@pytest.mark.parametrize("status", STATUSES)
def test_only_the_servers_own_faults_are_called_so(status: int) -> None:
    error = GatewayError(status, "text")
    openai = errors.document(error, "openai")["error"]["type"]
    anthropic = errors.document(error, "anthropic")["error"]["type"]
    assert (openai == "InternalServerError") == (status >= 500)
    assert (anthropic in ("api_error", "overloaded_error", "timeout_error")) == (status >= 500)


@pytest.mark.parametrize(("asked", "told"), [(-3, "1"), (0, "1"), (7, "7"), (61, "60")])
def test_a_client_is_asked_back_within_a_minute(asked: int, told: str) -> None:
    """Some agents give up when they are told to wait for longer."""
    assert GatewayError(429, "text", retry_after_s=asked).headers == {"retry-after": told}


def event_data(event: bytes) -> bytes:
    """The one data line of an event."""
    assert event.endswith(b"\n\n")
    lines = [line for line in event.splitlines() if line.startswith(b"data: ")]
    assert len(lines) == 1
    return lines[0].removeprefix(b"data: ")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_as_an_event(dialect: Dialect) -> None:
    error = GatewayError(502, "line\nbreak")
    event = errors.sse(error, dialect)
    assert msgspec.json.decode(event_data(event)) == errors.document(error, dialect)
    assert event.startswith(b"event: error\n") == (dialect == "anthropic")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_engines_error_is_passed_on_in_one_line(dialect: Dialect) -> None:
    pretty = b'{\r\n "error": {\n  "message": "no"\n }\n}\n'
    told = event_data(errors.relayed(400, pretty, dialect))
    assert msgspec.json.decode(told) == {"error": {"message": "no"}}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("answer", [b"", b"<html>no</html>", b'"text"', b"[1]", b"\xff", b"{" * 99])
def test_what_no_client_can_read_is_told_in_our_words(answer: bytes, dialect: Dialect) -> None:
    told = event_data(errors.relayed(500, answer, dialect))
    assert msgspec.json.decode(told)["error"]["message"] == "the engine answered 500"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_signs_of_life_are_whole_events(dialect: Dialect) -> None:
    assert errors.keepalive(dialect).endswith(b"\n\n")
