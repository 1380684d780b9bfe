"""An adapter never fails its application: what goes wrong in it is logged once, for who looks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_log: Final = logging.getLogger("saga.adapters")
_seen: Final[set[str]] = set()


def note(where: str, error: BaseException) -> None:
    """Logs an error at debug level, the first one at each place only.

    Its class is all that is told: a message may quote a prompt or a key.
    """
    if where not in _seen:
        _seen.add(where)
        _log.debug("%s: %s; said once", where, type(error).__name__)


def silent(call: Callable[P, T]) -> Callable[P, T | None]:
    """None where the call fails."""

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            note(call.__qualname__, error)
            return None

    return guarded


Undo = Callable[[], Any]
