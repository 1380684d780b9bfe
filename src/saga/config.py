"""Names to policies: presets are YAML files, policies are the modules of ``saga.policies``.

A preset chooses one policy per question: a name, or a mapping with ``policy`` and its parameters;
``null`` means the default of ``DEFAULTS`` (an engine's own behaviour). ``extends`` starts from
another preset. ``package.module:Class`` names a policy of another package.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from saga.core.policy import Policies

QUESTIONS: dict[str, str] = {
    "admission": "admit",
    "fairness": "urgency",
    "ordering": "key",
    "routing": "route",
    "eviction": "rank",
    "retention": "hold",
    "offload": "offload_now",
    "stealing": "steals",
    "prefetch": "at",
}
"""Kind of policy, and the method by which a class is recognised as one."""

DEFAULTS: dict[str, str | None] = dict.fromkeys(QUESTIONS) | {
    "routing": "least_loaded",
    "ordering": "fcfs",
    "eviction": "prefix_lru",
    "offload": "host_lru",
}
"""What ``null`` means: no such policy, or what plain engines behind a balancer do. (Offload: only
engines that have host memory for KV use it.)"""

SETTINGS = ("max_waiting_per_engine", "epoch_us")
_KEYS = (*QUESTIONS, *SETTINGS, "description", "extends")


class ConfigError(ValueError):
    """A name or value in the configuration that is not allowed; says where and what is."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A policy as ``saga policies`` lists it."""

    name: str
    kind: str
    cls: type[Any]

    @property
    def question(self) -> str:
        return " ".join((self.cls.__doc__ or "").split("\n\n")[0].split())

    @property
    def parameters(self) -> dict[str, Any]:
        return {field.name: field.default for field in fields(self.cls)}


@dataclass(frozen=True, slots=True)
class Preset:
    name: str
    description: str
    policies: Policies


@cache
def known_policies() -> dict[str, PolicyInfo]:
    """Every policy in ``saga.policies``, by its name: the name of its file."""
    package = import_module("saga.policies")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: _info(name, _class_of(name)) for name in names}


def _class_of(name: str) -> type[Any]:
    module = import_module(f"saga.policies.{name}")
    wanted = name.replace("_", "")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and candidate.__name__.lower() == wanted:
            return candidate
    raise ConfigError(f"module saga.policies.{name} has no class named like its file")


def _info(name: str, cls: Any) -> PolicyInfo:
    if not isinstance(cls, type) or not is_dataclass(cls):
        raise ConfigError(f"policy {name!r} is no dataclass")
    kinds = [kind for kind, method in QUESTIONS.items() if callable(getattr(cls, method, None))]
    if len(kinds) != 1:
        raise ConfigError(
            f"policy {name!r} ({cls.__name__}) answers {', '.join(kinds) or 'none'} of the "
            f"questions {', '.join(QUESTIONS)}; allowed: exactly one"
        )
    return PolicyInfo(name, kinds[0], cls)


def _external(name: str) -> PolicyInfo:
    module, _, attribute = name.partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: the name
        raise ConfigError(f"policy {name!r} cannot be loaded: {error}") from error
    return _info(name, cls)


def build_policy(kind: str, choice: Any, where: str) -> Any:
    """The policy that a preset's line chooses: a name, a mapping, or None for the default."""
    if choice is None:
        choice = DEFAULTS[kind]
        if choice is None:
            return None
    if isinstance(choice, str):
        choice = {"policy": choice}
    if not isinstance(choice, dict) or not isinstance(choice.get("policy"), str):
        raise ConfigError(
            f"{where}: {kind} is {choice!r}; allowed: a name, or a mapping with policy"
        )
    name = choice["policy"]
    info = _external(name) if ":" in name else known_policies().get(name)
    if info is None or info.kind != kind:
        allowed = [p.name for p in known_policies().values() if p.kind == kind]
        raise ConfigError(f"{where}: {kind} {name!r} is not known{_hint(name, allowed)}")
    parameters = {key: value for key, value in choice.items() if key != "policy"}
    return _validate(info, parameters, f"{where}: {kind} {name}")


def _validate(info: PolicyInfo, parameters: dict[str, Any], where: str) -> Any:
    unknown = sorted(set(parameters) - set(info.parameters))
    if unknown:
        raise ConfigError(
            f"{where}: no parameter {unknown[0]!r}{_hint(unknown[0], info.parameters)}"
        )
    return _checked(info.cls, parameters, where)


def _checked(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    """An instance of a dataclass, its values converted and checked against the annotations."""
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "values"
        raise ConfigError(f"{where}: {name} = {first['input']!r}: {first['msg']}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    max_waiting_per_engine: int | None = None
    epoch_us: int = 100_000

    def __post_init__(self) -> None:
        waiting = self.max_waiting_per_engine
        if self.epoch_us < 1 or (waiting is not None and waiting < 1):
            raise ValueError("max_waiting_per_engine and epoch_us must be at least 1")


def preset_names() -> list[str]:
    """The presets that come with SAGA."""
    files = (resources.files("saga") / "presets").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_preset(name: str) -> Preset:
    """A preset by name, or from a path that ends in ``.yaml``.

    ``NAME+KEY=VALUE+...`` changes lines of it: ``saga+admission.kappa=1.2+fairness=null``.
    """
    base, *changes = name.split("+")
    lines = _lines(base, ())
    for change in changes:
        _apply(lines, change, name)
    policies = {kind: build_policy(kind, lines.get(kind), f"preset {name}") for kind in QUESTIONS}
    chosen = {key: lines[key] for key in SETTINGS if key in lines}
    settings = _checked(_Settings, chosen, f"preset {name}")
    bundle = Policies(
        **policies,
        max_waiting_per_engine=settings.max_waiting_per_engine,
        epoch_us=settings.epoch_us,
    )
    return Preset(name, str(lines.get("description", "")), bundle)


def _apply(lines: dict[str, Any], change: str, where: str) -> None:
    key, equals, text = change.partition("=")
    question, _, parameter = key.partition(".")
    known = QUESTIONS if parameter else (*QUESTIONS, *SETTINGS)
    if not equals or question not in known:
        raise ConfigError(
            f"preset {where}: {change!r} is not QUESTION=POLICY or QUESTION.PARAMETER=VALUE"
            f"{_hint(question, (*QUESTIONS, *SETTINGS))}"
        )
    value = _yaml(text, f"preset {where}: {change!r}")
    if not parameter:
        lines[question] = value
        return
    line = lines.get(question) or DEFAULTS.get(question)
    line = {"policy": line} if isinstance(line, str) else dict(line or {})
    lines[question] = {**line, parameter: value}


def _lines(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The lines of a preset, those it extends included."""
    if name in seen:
        raise ConfigError(f"preset {name!r} extends itself: {' -> '.join((*seen, name))}")
    lines = _yaml(_text(name), f"preset {name!r}")
    if not isinstance(lines, dict):
        raise ConfigError(f"preset {name!r} is not a mapping")
    for key in lines:
        if key not in _KEYS:
            raise ConfigError(f"preset {name!r}: key {key!r} is not known{_hint(str(key), _KEYS)}")
    base = lines.pop("extends", None)
    return lines if base is None else {**_lines(str(base), (*seen, name)), **lines}


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def _text(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"preset file {name!r} cannot be read: {why}") from error
    if name not in preset_names():
        raise ConfigError(f"preset {name!r} is not known{_hint(name, preset_names())}")
    return (resources.files("saga") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def _hint(name: str, allowed: Iterable[str]) -> str:
    """What is allowed, the closest first if one is close."""
    names = list(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" allowed: {', '.join(names)}"
