"""Asks an identifier about requests as they come from clients."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

from saga.gateway.body import decode
from saga.gateway.identity import Identifier, Identity

CHAT: Mapping[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def numbered(prefix: str = "new-") -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"{prefix}{next(numbers)}"


def packed(value: Any) -> str:
    """Base64url of JSON without padding, as clients put it into a header."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def ask(
    identifier: Identifier,
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
    *,
    tenant: str = "tenant",
    api: str = "chat",
    now_us: int = 0,
    **more: Any,
) -> Identity:
    """The identity of a request with these headers and fields; ``more`` are fields as well."""
    fields = {**(CHAT if body is None else body), **more}
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    return identifier.identify(
        tenant, lower, decode(json.dumps(fields).encode()), api=api, now_us=now_us
    )
