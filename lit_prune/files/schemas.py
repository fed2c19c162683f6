"""JSON, and records whose fields are held to their types: data that others wrote. Nothing is imported or run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from lit_prune.errors import DataError
from lit_prune.files.atomic import write_text

T = TypeVar("T")
MAX_NUMBER = 2**64 - 1
"""No number of ours is larger, a seed's included; a larger one could not even be divided."""


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

    Lists become the tuples that they were, and whole numbers the fractions that are wanted.

    Raises:
        TypeError: A value is of another type, a name is unknown or missing, or the data is no mapping.
    """
    known = {each.name for each in fields(cast(Any, kind))}
    if isinstance(data, Mapping) and (unknown := sorted({*map(str, data)} - known)):
        raise TypeError(f"{kind.__name__} has no {', '.join(unknown)[:80]}")
    return cast(T, _converted(kind.__name__, data, kind))


def require_kinds(where: str, data: Any, kinds: Mapping[str, Any]) -> None:
    """Check that data, which the message calls `where`, has all of some names, with values of their types.

    Raises:
        TypeError: A name is missing, or its value is of another type.

    Example:
        >>> require_kinds("healing", {"tokens": 5, "step": 1}, {"tokens": int})
        >>> require_kinds("healing", {"tokens": "five"}, {"tokens": int})
        Traceback (most recent call last):
            ...
        TypeError: tokens of healing: Expected `int`, got `str`
    """
    _converted(where, data, dict[str, Any])
    for name, kind in kinds.items():
        if name not in data:
            raise TypeError(f"{where} has no {name}")
        _converted(f"{name} of {where}", data[name], kind)


def _converted(where: str, data: Any, kind: Any) -> Any:
    import msgspec  # `--help` need not wait for it

    try:
        _require_countable(data)
        return msgspec.convert(data, kind)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise TypeError(f"{where}: {error}") from error


def _require_countable(value: Any) -> None:
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise OverflowError(f"Expected a number of {MAX_NUMBER} at most, got {len(str(abs(value)))} digits")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        _require_countable(inner)
