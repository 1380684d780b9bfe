from __future__ import annotations

import subprocess
import sys

import pytest
from tests.report.factory import runs_with_tct

from saga.report.extras import sim_extra
from saga.report.statistics import compare


def test_a_missing_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)  # what the import system does: refuse
    runs = runs_with_tct({1: [1], 2: [1]})
    with pytest.raises(ImportError, match=r"'scipy.stats'.*install saga-serve\[sim\]"):
        compare(runs, runs)


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), sim_extra():
        raise ZeroDivisionError


def test_a_report_can_be_imported_without_the_extra() -> None:
    libraries = "matplotlib scipy rich jinja2"
    code = f"""
import sys, saga.report.report
sys.exit(any(name in sys.modules for name in {libraries.split()}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
