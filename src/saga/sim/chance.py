"""Random streams: one per subsystem, so that a draw more in one moves nothing in another."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Numbers are part of every result; never change one."""

    ARRIVALS = 1
    BODIES = 2
    TENANTS = 3


def generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The generator of one subsystem for one seed; ``index`` gives each workflow its own."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, allowed is 0 or more")
    return np.random.default_rng(np.random.SeedSequence([seed, stream, index]))
