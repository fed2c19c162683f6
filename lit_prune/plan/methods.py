"""Methods by the field's names: which scorer, search and granularity each is made of, read from YAML."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from lit_prune.errors import LitPruneError, did_you_mean
from lit_prune.plan.candidates import KINDS
from lit_prune.plan.registry import Named

GRANULARITIES = ("sublayer", *KINDS, "block")
SUFFIX = ".yaml"


@dataclass(frozen=True)
class Recipe:
    """What decides which candidates go, in which order, and what makes up for them.

    Args:
        scorer: What says how important a candidate is: a registered name, a mapping with options such as
            `{name: nri, baseline: original}`, an import path, or in Python a function or a `Scorer`.
        search: What says which candidates are scored in which round, in the same forms; in Python a function or a
            `Search`.
        granularity: What goes at a time: a `sublayer` of either kind, `attention` only, `mlp` only, a whole `block`.
        protect: What must stay: `attention.0`, `mlp.3`, `block.2`, `first` and `last` for the blocks at the ends.
        compensate: `none`, or what makes up for removals in weights that stay: `refit` at the end, `scale`, `bias` or
            `linear` for each; a mapping with options, an import path, or in Python a function or a `Compensation`.

    Raises:
        LitPruneError: The granularity is unknown.
    """

    scorer: Named | Callable[..., Any] = "nri"
    search: Named | Callable[..., Any] = "progressive"
    granularity: str = "sublayer"
    protect: Sequence[str] = ()
    compensate: Named | Callable[..., Any] = "none"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise LitPruneError(f"granularity must be one of {', '.join(GRANULARITIES)}; found {self.granularity!r}")
        object.__setattr__(self, "protect", tuple(self.protect))

    @property
    def options(self) -> dict[str, Any]:
        """The five settings by their names."""
        return {option.name: getattr(self, option.name) for option in fields(Recipe)}


@dataclass(frozen=True, kw_only=True)
class Method(Recipe):
    """A published method as what lit-prune has for it: a recipe with its origin.

    Args:
        name: What it is called here and in tables.
        title: What its authors call it.
        source: Its paper, as an arXiv number where it has one.
        differs: What is done otherwise than in the original.
        scorer: See `Recipe`, which describes the other settings too.
    """

    name: str
    title: str
    source: str
    differs: str
    scorer: Named

    def with_settings(self, settings: Mapping[str, Any]) -> Method:
        """The method with some of its settings changed.

        Raises:
            LitPruneError: A method has no such setting.
        """
        known = {setting.name for setting in fields(self)}
        if unknown := sorted({*settings} - known):
            raise LitPruneError(f"a method has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return replace(self, **settings)


def method_names() -> list[str]:
    """The methods that lit-prune knows, in alphabetical order."""
    return sorted(file.name.removesuffix(SUFFIX) for file in _folder().iterdir() if file.name.endswith(SUFFIX))


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
        hint = did_you_mean(name, known) or "."
        raise LitPruneError(f"unknown method {name!r}{hint} Known: {', '.join(known)}")
    data = yaml.safe_load(_folder().joinpath(f"{name}{SUFFIX}").read_text(encoding="utf-8"))
    return Method(name=name, **data)


def _folder() -> Any:
    return importlib.resources.files("lit_prune.plan.presets")
