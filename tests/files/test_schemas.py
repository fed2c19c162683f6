"""Records of others: what is of the type that a field has is taken, all else is one error that names the field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from lit_prune.files import record_of, require_kinds


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Record:
    count: int
    share: float = 0.0
    known: float | None = None
    names: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    scores: Mapping[str, float] = field(default_factory=dict)
    better: Literal["lower", "higher"] | None = None
    inner: Inner | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


TAKEN = [
    ({"share": 1}, 1.0),
    ({"share": float("inf")}, float("inf")),
    ({"known": None}, None),
    ({"names": ["a", "b"]}, ("a", "b")),
    ({"names": ("a",)}, ("a",)),
    ({"pair": [1, 2.5]}, (1.0, 2.5)),
    ({"scores": {"a": 1}}, {"a": 1.0}),
    ({"better": "lower"}, "lower"),
    ({"inner": Inner("x")}, Inner("x")),
    ({"settings": {"seed": 2**64 - 1, "of": [1, {"a": None}]}}, {"seed": 2**64 - 1, "of": [1, {"a": None}]}),
]
REFUSED = [
    ({"count": "1"}, r"Record: Expected `int`, got `str` - at `\$.count`"),
    ({"count": 1.0}, r"\$.count"),
    ({"count": True}, r"\$.count"),
    ({"count": 10**400}, "401 digits"),
    ({"share": True}, r"\$.share"),
    ({"share": None}, r"\$.share"),
    ({"names": "abc"}, r"\$.names"),
    ({"names": ["a", 1]}, r"\$.names\[1\]"),
    ({"pair": [1, 2, 3]}, "length 2"),
    ({"scores": {"a": "x"}}, r"\$.scores"),
    ({"scores": {1: 1.0}}, "Expected `str`"),
    ({"better": "more"}, r"\$.better"),
    ({"settings": {"a": [{"b": 10**400}]}}, "401 digits"),
    ({"unheard_of": 1}, "Record has no unheard_of"),
]


@pytest.mark.parametrize(("change", "expected"), TAKEN)
def test_what_fits_is_taken(change, expected):
    (name,) = change
    found = getattr(record_of(Record, {"count": 1, **change}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_what_does_not_fit_is_one_error(change, reason):
    with pytest.raises(TypeError, match=reason):
        record_of(Record, {"count": 1, **change})


@pytest.mark.parametrize("data", [None, [1], "text", {}])
def test_what_is_no_whole_record(data):
    with pytest.raises(TypeError, match="Record: "):
        record_of(Record, data)


def test_single_names():
    kinds = {"batch": int | str, "nll": tuple[float, ...]}
    require_kinds("a line", {"batch": "kl/3", "nll": [1, 2.5], "more": 1}, kinds)
    for data, reason in (
        ({"batch": 1.5, "nll": []}, r"batch of a line: Expected `int \| str`, got `float`"),
        ({"batch": 1}, "a line has no nll"),
        ([1], "a line: Expected"),
    ):
        with pytest.raises(TypeError, match=reason):
            require_kinds("a line", data, kinds)


def test_what_is_nested_too_deeply():
    data = {}
    for _ in range(100_000):
        data = {"a": data}
    with pytest.raises(TypeError, match="recursion"):
        record_of(Record, {"count": 1, "settings": data})
    while data:  # its own end would be as deep
        data = data.pop("a")
