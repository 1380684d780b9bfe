"""Hooks into modules, before and after they are imported."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from saga.adapters.imports import Watch

SOURCE = "def told() -> str:\n    return 'itself'\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of one that can be imported, and is forgotten again."""
    folder = tmp_path / "watched_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(SOURCE)
    (folder / "part.py").write_text(SOURCE)
    (folder / "broken.py").write_text("raise RuntimeError('its own')")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "watched_package"
    for name in [name for name in sys.modules if name.startswith("watched_package")]:
        del sys.modules[name]


def watch(*names: str, seen: list[ModuleType]) -> Watch:
    one = Watch(dict.fromkeys(names, seen.append))
    one.begin()
    return one


def test_a_module_is_told_of_once_after_it_ran(package: str) -> None:
    seen: list[ModuleType] = []
    one = watch(f"{package}.part", seen=seen)
    try:
        module = importlib.import_module(package)
        assert seen == []
        part = importlib.import_module(f"{package}.part")
        assert seen == [part]
        importlib.reload(part)
        assert seen == [part]
        assert part.told() == "itself"
        assert module is not part
    finally:
        one.end()
    assert one not in sys.meta_path


def test_a_module_looks_as_if_nobody_had_watched(package: str) -> None:
    one = watch(package, seen=[])
    try:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.loader is not None
        assert spec.loader.get_source(package) == SOURCE  # type: ignore[attr-defined] # a file's
        module = importlib.import_module(package)
    finally:
        one.end()
    assert inspect.getsource(module) == SOURCE
    assert type(module.__loader__).__module__ == "_frozen_importlib_external"
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__


def test_what_is_there_already_is_told_at_once() -> None:
    seen: list[ModuleType] = []
    watch("json", "there.is.none", seen=seen).end()
    assert [module.__name__ for module in seen] == ["json"]


def test_a_module_that_fails_fails_as_ever(package: str) -> None:
    seen: list[ModuleType] = []
    one = watch(f"{package}.broken", f"{package}.missing", seen=seen)
    try:
        with pytest.raises(RuntimeError, match="its own"):
            importlib.import_module(f"{package}.broken")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"{package}.missing")
    finally:
        one.end()
    assert seen == []


def test_a_hook_that_fails_leaves_the_module_alone(package: str) -> None:
    def fail(module: ModuleType) -> None:
        raise RuntimeError("not the application's problem")

    one = Watch({package: fail})
    one.begin()
    try:
        assert importlib.import_module(package).told() == "itself"
    finally:
        one.end()
