"""What to say when the libraries that only reports need are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sim_extra() -> Iterator[None]:
    """Wrap the import of a library of the extra ``sim``; its absence then names the remedy.

    Raises ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"reports need {error.name!r}, which is not installed: install saga-serve[sim]"
        ) from error
