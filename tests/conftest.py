"""How Hypothesis runs: few examples, the same ones every time in CI, and no wall-clock verdicts."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "saga",
    max_examples=50,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no failure
)
settings.load_profile("saga")
