"""What a request says about its session and the KV that it leaves behind."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from saga import wire

MAX_ID: Final = 256
MAX_TTL_S: Final = 86_400.0
"""Longer ones are cut to a day."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """None: nothing was said."""

    session: str | None = None
    ttl_s: float | None = None
    score: float | None = None
    """Chance of reuse, within 0 and 1."""
    return_s: float | None = None
    """When the session is expected back, after the end of the step."""
    final: bool = False
    """Nobody will come back."""
    prefetch: bool = False
    """The session did not ask: its KV is made ready before it does."""


NONE: Final = Hints()


def plain_id(value: Any) -> str | None:
    """The value if it can be an id; others are ignored, not cut."""
    fits = isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable()
    return value if fits else None


def finite(value: Any) -> float | None:
    """The number, texts read as one; None if it is no finite one."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def duration(value: Any) -> float | None:
    """Seconds, at most a day; None if it is no number or negative."""
    result = finite(value)
    return None if result is None or result < 0 else min(result, MAX_TTL_S)


def chance(value: Any) -> float | None:
    """The number, cut to what a probability can be; None if it is no number."""
    result = finite(value)
    return None if result is None else max(0.0, min(1.0, result))


def _said(extra: Mapping[str, Any], name: str) -> bool:
    return extra.get(name) in (True, 1, "1", "true")


class HintReader:
    """Reads hints, forgives what is wrong with them, and says so once."""

    def __init__(self) -> None:
        self._warned = False

    def read(self, extra: Mapping[str, Any] | None, native_session: object) -> Hints:
        """From the extra arguments of a request, and the session that the engine itself knows."""
        native = plain_id(native_session)
        if not extra or extra.keys().isdisjoint(wire.HINTS):
            return NONE if native is None else Hints(session=native)
        ttl_s = self._value(extra, wire.HINT_TTL, duration)
        return Hints(
            session=self._value(extra, wire.HINT_SESSION, plain_id) or native,
            ttl_s=ttl_s,
            score=self._value(extra, wire.HINT_SCORE, chance),
            return_s=self._value(extra, wire.HINT_RETURN, duration),
            final=ttl_s == 0 or _said(extra, wire.HINT_FINAL),
            prefetch=_said(extra, wire.HINT_PREFETCH),
        )

    def _value(self, extra: Mapping[str, Any], name: str, read: Any) -> Any:
        given = extra.get(name)
        value = None if given is None else read(given)
        if value is None and given is not None and not self._warned:
            self._warned = True
            logger.warning("%s of a request is ignored: it is out of range or no such value", name)
        return value
