"""The same tests on the oldest and the newest vLLM that the plugin is for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.plugin.sources import ROOT, VERSIONS, source_of

HERE = Path(__file__).parent
APART = ("test_gpu_benchmark.py", "test_live.py", "test_live_tiers.py", Path(__file__).name)
"""These have processes of their own."""


@pytest.mark.parametrize("version", VERSIONS)
def test_all_of_it_holds_on_another_version(version: str) -> None:
    tests = [str(file) for file in sorted(HERE.glob("test_*.py")) if file.name not in APART]
    paths = [str(source_of(version)), os.environ.get("PYTHONPATH", "")]
    asked = "import vllm; print(vllm.__version__)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ran = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True)
    assert ran.stdout.decode().split()[-1] == version
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert ran.returncode == 0, ran.stdout.decode()[-8_000:]
