"""Data that others wrote: JSON, and records whose fields are held to their types. Nothing is imported or run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lit_prune.files.atomic import from_json

T = TypeVar("T")
MAX_NUMBER = 2**63
"""No count of ours is larger; a larger one could not even be divided."""


def read_json(text: str) -> Any:
    """The data in a text that `to_json` and `json.dumps` have made.

    Raises:
        ValueError: It is no JSON, or so deeply nested that no record of ours can be it.

    Example:
        >>> read_json('{"score": "inf"}')
        {'score': inf}
    """
    try:
        return from_json(json.loads(text))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def checked(kind: type[T], data: Any) -> T:
    """Make a dataclass of a mapping, every value of the type that its field has.

    Args:
        kind: The dataclass; of simple types, unions, literals, tuples and mappings of them.
        data: Values by name.

    Raises:
        TypeError: A value is of another type, a name is unknown or missing, or this is no mapping.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"expected a mapping for {kind.__name__}, found {type(data).__name__}")
    hints = get_type_hints(kind)
    for name, value in data.items():
        if name in hints and not _fits(value, hints[name]):
            raise TypeError(f"{name} of {kind.__name__} has a value of a wrong kind: {repr(value)[:80]}")
    return kind(**data)


def require_kinds(where: str, data: Any, kinds: Mapping[str, Any]) -> None:
    """Check that data has all of some names, with values of their types.

    Raises:
        TypeError: It has not.

    Example:
        >>> require_kinds("healing", {"tokens": 5, "step": 1}, {"tokens": int})
        >>> require_kinds("healing", {"tokens": "five"}, {"tokens": int})
        Traceback (most recent call last):
            ...
        TypeError: tokens of healing is missing or of a wrong kind: 'five'
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"expected a mapping for {where}, found {type(data).__name__}")
    for name, kind in kinds.items():
        if name not in data or not _fits(data[name], kind):
            raise TypeError(f"{name} of {where} is missing or of a wrong kind: {repr(data.get(name))[:80]}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple or origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(each, inner[0]) for each in value)
    if origin is Mapping:
        named = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        return named and all(_fits(each, inner[1]) for each in value.values())
    if hint in (int, float):
        number = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return number and not (isinstance(value, int) and abs(value) >= MAX_NUMBER)
    return isinstance(value, origin or hint)
