"""Methods by the field's names: which scorer, search and granularity each is made of, read from YAML."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import yaml

from lit_prune.errors import LitPruneError

Granularity = Literal["sublayer", "attention", "mlp", "block"]
SUFFIX = ".yaml"


@dataclass(frozen=True)
class Method:
    """A published method as what lit-prune has for it.

    Attributes:
        name: What it is called here and in tables.
        title: What its authors call it.
        source: Paper, as an arXiv number where it has one.
        differs: What is done otherwise than in the original.
        scorer: As for `Pruner`.
        search: As for `Pruner`.
        granularity: As for `Pruner`.
        protect: As for `Pruner`.
        compensate: As for `Pruner`.
    """

    name: str
    title: str
    source: str
    differs: str
    scorer: str | Mapping[str, Any]
    search: str | Mapping[str, Any] = "progressive"
    granularity: Granularity = "sublayer"
    protect: tuple[str, ...] = ()
    compensate: str | Mapping[str, Any] = "none"

    def with_settings(self, settings: Mapping[str, Any]) -> Method:
        """The method with some of its settings changed.

        Raises:
            LitPruneError: One of them is none of a method's.
        """
        known = {each.name for each in fields(self)}
        if unknown := sorted({*settings} - known):
            raise LitPruneError(f"a method has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return replace(self, **{**settings, "protect": tuple(settings.get("protect", self.protect))})


def method_names() -> list[str]:
    """The methods that lit-prune knows, in alphabetical order."""
    return sorted(each.name.removesuffix(SUFFIX) for each in _folder().iterdir() if each.name.endswith(SUFFIX))


def read_method(name: str) -> Method:
    """Read the preset of a method.

    Raises:
        LitPruneError: There is none of that name.

    Example:
        >>> read_method("sleb").granularity
        'block'
    """
    known = method_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise LitPruneError(f"unknown method {name!r}{hint} Known: {', '.join(known)}")
    data = yaml.safe_load(_folder().joinpath(f"{name}{SUFFIX}").read_text(encoding="utf-8"))
    return Method(name=name, **{**data, "protect": tuple(data.get("protect", ()))})


def _folder() -> Any:
    return importlib.resources.files("lit_prune.plan.presets")
