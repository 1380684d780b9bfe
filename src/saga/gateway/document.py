"""YAML files whose every value knows its line, and what is wrong with them, one line a problem.

No text value is repeated in a problem: it may be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Loc = tuple[int | str, ...]
"""The way to a value: keys and indices, from the root."""

_MERGE_TAG = "tag:yaml.org,2002:merge"
_STR_TAG = "tag:yaml.org,2002:str"


class DocumentError(ValueError):
    """Text that is not YAML or no mapping; says which file and line."""


class _Loader(yaml.SafeLoader):
    """Plain values only. Keys are text as written (a tenant may be called ``no``), none twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
                continue
            key.tag = _STR_TAG
            if key.value in seen:
                problem = f"key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(
                    problem=problem, problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text and its node; ``name`` is what errors call it."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        # Not str(error): it quotes the line, and there may be a key on it.
        mark = error.problem_mark
        place = name if mark is None else f"{name}:{mark.line + 1}"
        raise DocumentError(f"{place}: not readable as YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise DocumentError(f"{name}: not readable as YAML") from None


class Document:
    """The mapping in a YAML file, read when made; an empty file is an empty mapping.

    Raises ``DocumentError``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DocumentError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DocumentError(f"{path}: cannot be read: not UTF-8") from None
        values, self._root = parse(text, str(path))
        if values is not None and not isinstance(values, dict):
            raise DocumentError(f"{path}:1: must be a mapping of keys to values")
        self.values: dict[str, Any] = values or {}

    def place(self, loc: Loc) -> str:
        """``FILE:LINE`` of a value, or of the nearest one around it."""
        node, line = self._root, 1
        for part in loc:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return f"{self.path}:{line}"


def _child(node: yaml.Node | None, part: int | str) -> tuple[int, yaml.Node] | None:
    """Line and node of an entry."""
    found = None
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:  # the last one counts: those before it were merged in
                found = key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        found = value.start_mark.line + 1, value
    return found


def problems(
    error: ValidationError, model: type[BaseModel], place: Callable[[Loc], str]
) -> list[str]:
    """``PLACE: KEY: what is wrong``, one for each error; the keys known are those of ``model``."""
    lines = []
    for detail in error.errors(include_url=False):
        loc: Loc = detail.get("ctx", {}).get("loc") or detail["loc"]
        text = _text(detail, model)
        loc = loc[:-1] if loc and loc[-1] == "[key]" else loc
        name = ".".join(map(str, loc))
        lines.append(": ".join(part for part in (place(loc), name, text) if part))
    return lines


def _text(detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown(str(detail["loc"][-1]), _keys(model, detail["loc"][:-1]))
    if kind in ("model_type", "dict_type"):
        return "must be a mapping of keys to values"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    text = detail["msg"].replace("Input should", "must").replace("String should", "must")
    return f"is {value!r}, {text}" if isinstance(value, int | float) else text


def _unknown(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown key {name!r}{hint} allowed: {', '.join(known)}"


def _keys(model: type[BaseModel], loc: Loc) -> Collection[str]:
    """Keys that a model, or one nested in it, knows."""
    annotation: Any = model
    for part in loc:
        if get_origin(annotation) is not None:  # dict[str, Model], tuple[Model, ...]
            annotation = next(a for a in get_args(annotation) if hasattr(a, "model_fields"))
        else:
            annotation = annotation.model_fields[part].annotation
    return list(annotation.model_fields)
