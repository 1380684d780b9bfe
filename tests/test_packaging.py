"""What installing SAGA may ask for: nothing that moves an engine it is installed beside."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
ALREADY_IN_VLLM = {
    *("httptools", "msgspec", "numpy", "prometheus-client", "pydantic"),
    *("pyyaml", "pyzmq", "tqdm", "uvloop"),
}


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def locked() -> list[str]:
    lines = (ROOT / "requirements" / "dev.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_hard_dependencies_are_ones_vllm_has() -> None:
    names = {canonicalize_name(Requirement(line).name) for line in project()["dependencies"]}
    assert names <= ALREADY_IN_VLLM


@pytest.mark.parametrize("line", project()["dependencies"])
def test_hard_dependencies_have_a_lower_bound_only(line: str) -> None:
    requirement = Requirement(line)
    assert [bound.operator for bound in requirement.specifier] == [">="]
    assert requirement.url is None


@pytest.mark.parametrize("extra", project()["optional-dependencies"])
def test_extras_have_no_upper_bound(extra: str) -> None:
    requirements = map(Requirement, project()["optional-dependencies"][extra])
    operators = {bound.operator for requirement in requirements for bound in requirement.specifier}
    assert operators <= {">="}


def test_lock_is_plain() -> None:
    odd = [line for line in locked() if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)]
    assert odd == []


def test_lock_covers_what_is_declared() -> None:
    extras = project()["optional-dependencies"].values()
    declared = [*project()["dependencies"], *(line for extra in extras for line in extra)]
    names = {canonicalize_name(Requirement(line).name) for line in declared} - {project()["name"]}
    assert names <= {canonicalize_name(line.split("==")[0]) for line in locked()}
