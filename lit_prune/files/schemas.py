"""JSON, and records whose fields are held to their types: data that others wrote. Nothing is imported or run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lit_prune.errors import DataError
from lit_prune.files.atomic import write_text

T = TypeVar("T")
MAX_NUMBER = 2**63
"""No count of ours is larger; a larger one could not even be divided."""


def to_json(value: Any) -> Any:
    """Replace infinities, which JSON does not have, by the texts that `float` reads; tuples become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: to_json(inner) for name, inner in value.items()}
    return [to_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def from_json(value: Any) -> Any:
    """Undo `to_json`."""
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, dict):
        return {name: from_json(inner) for name, inner in value.items()}
    return [from_json(inner) for inner in value] if isinstance(value, list) else value


def write_json(path: str | Path, data: Any) -> Path:
    """Write data for programs and for readers, infinities included; `write_text` puts the file in place."""
    return write_text(path, json.dumps(to_json(data), indent=2, allow_nan=False) + "\n")


def read_json(text: str) -> Any:
    """Read what `to_json` and `json.dumps` have made.

    Raises:
        ValueError: The text is no JSON, or so deeply nested that no record of ours can be it.

    Example:
        >>> read_json('{"score": "inf"}')
        {'score': inf}
    """
    try:
        return from_json(json.loads(text))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def foreign_json(text: str, place: str) -> Any:
    """Read JSON that somebody else wrote, its texts as `whole_characters` gives them.

    Raises:
        DataError: The text is no JSON, or nested too deeply; the message names the place.
    """
    try:
        return whole_characters(json.loads(text))
    except ValueError as error:
        raise DataError(f"{place}: this is not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{place}: this JSON is nested too deeply") from error


def whole_characters(value: Any) -> Any:
    r"""Put U+FFFD for halves of a character into texts, lists and mappings: no tokenizer takes these halves.

    Example:
        >>> whole_characters({"text": "a \ud83d b \ud83d\ude00"}) == {"text": "a \ufffd b \U0001f600"}
        True
    """
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {name: whole_characters(inner) for name, inner in value.items()}
    return [whole_characters(inner) for inner in value] if isinstance(value, list) else value


def record_of(kind: type[T], data: Any) -> T:
    """Make a dataclass of a mapping, every value of the type that its field has.

    Fields are simple types, unions, literals, tuples and mappings of them.

    Raises:
        TypeError: A value is of another type, a name is unknown or missing, or the data is no mapping.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"expected a mapping for {kind.__name__}, found {type(data).__name__}")
    hints = get_type_hints(kind)
    for name, value in data.items():
        if name in hints and not _fits(value, hints[name]):
            raise TypeError(f"{name} of {kind.__name__} has a value of a wrong kind: {repr(value)[:80]}")
    return kind(**{name: _tupled(value, hints.get(name)) for name, value in data.items()})


def _tupled(value: Any, hint: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    if isinstance(value, list) and get_origin(hint) is tuple:
        return tuple(value)
    if isinstance(value, dict) and len(get_args(hint)) == 2:
        return {name: _tupled(inner, get_args(hint)[1]) for name, inner in value.items()}
    return value


def require_kinds(where: str, data: Any, kinds: Mapping[str, Any]) -> None:
    """Check that data, which the message calls `where`, has all of some names, with values of their types.

    Raises:
        TypeError: A name is missing, or its value is of another type.

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
        return any(_fits(value, choice) for choice in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple or origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is Mapping:
        named = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        return named and all(_fits(item, inner[1]) for item in value.values())
    if hint in (int, float):
        number = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return number and not (isinstance(value, int) and abs(value) >= MAX_NUMBER)
    return isinstance(value, origin or hint)
