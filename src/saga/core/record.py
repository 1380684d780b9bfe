"""Values that are made by the thousand each second and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """A dataclass with slots and keyword-only fields, frozen in the eyes of type checkers.

    They are enough to keep it so: at run time a frozen dataclass takes four times as long to make.
    """
    return dataclass(slots=True, kw_only=True, unsafe_hash=True)(cls)
