"""Values from several places, one over the other, each remembering its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga.gateway.document import Document, DocumentError, Loc, parse


@dataclass(frozen=True, slots=True)
class _Layer:
    values: dict[str, Any]
    place: Callable[[Loc], str]


class Layers:
    """Added from the lowest to the highest: combined key by key, lists replaced.

    What cannot be read is left out and noted in ``problems``.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self._layers: list[_Layer] = []

    def add_file(self, path: Path | None) -> None:
        """A YAML file; None: there is none."""
        if path is None:
            return
        try:
            document = Document(path)
        except DocumentError as error:
            self.problems.append(str(error))
        else:
            self._add(_Layer(document.values, document.place))

    def add_values(self, given: Mapping[str, tuple[Loc, Any]]) -> None:
        """Values given one by one, each under the name of its place; None and "" are not given."""
        values: dict[str, Any] = {}
        names: dict[Loc, str] = {}
        for name, (loc, raw) in given.items():
            if raw is None or raw == "":
                continue
            try:
                value = _from_text(raw, name) if isinstance(raw, str) else raw
            except DocumentError as error:
                self.problems.append(str(error))
                continue
            names[loc] = name
            for part in reversed(loc):
                value = {part: value}
            values = _merged(values, value)
        self._add(_Layer(values, lambda loc: _nearest(names, loc)))

    def _add(self, layer: _Layer) -> None:
        self._layers.append(layer)
        self.values = _merged(self.values, layer.values)

    def place(self, loc: Loc) -> str:
        """Where the value that counts was given."""
        for layer in reversed(self._layers):
            if _holds(layer.values, loc):
                return layer.place(loc)
        return ""


def _from_text(text: str, name: str) -> Any:
    """Numbers and truth values stay text, which their fields understand."""
    if text == "null":
        return None
    return parse(text, name)[0] if text.startswith(("[", "{")) else text


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _holds(values: Any, loc: Loc) -> bool:
    """Whether there is a value at ``loc``; a value that is no mapping stands for all in it."""
    for part in loc:
        if not isinstance(values, dict):
            return True
        if part not in values:
            return False
        values = values[part]
    return True


def _nearest(names: Mapping[Loc, str], loc: Loc) -> str:
    """The names of the values at, around or within ``loc``."""
    return ", ".join(name for own, name in names.items() if own[: len(loc)] == loc[: len(own)])
