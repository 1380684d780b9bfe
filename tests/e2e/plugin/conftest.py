"""vLLM is imported here first: what its libraries warn about is no failure of these tests."""

from __future__ import annotations

import os
import warnings
from importlib import import_module

from tests.e2e.processes import ENVIRONMENT

os.environ.update(ENVIRONMENT)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import_module("tests.e2e.plugin.engine")
