"""Names for scorers and searches: a dict, a decorator, a did-you-mean. Third parties pass a class path instead."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from lit_prune.errors import LitPruneError

Named = str | Mapping[str, Any]
"""A name, or a mapping with `name` and options."""


class Registry:
    """A table of named factories.

    Args:
        noun: What is registered, for messages: "scorer".

    Example:
        >>> colours = Registry("colour")
        >>> @colours.register("red")
        ... def red(shade: float = 1.0) -> str:
        ...     return f"red at {shade}"
        >>> colours.create("red", shade=0.5)
        'red at 0.5'
        >>> colours.create("rad")
        Traceback (most recent call last):
            ...
        lit_prune.errors.LitPruneError: unknown colour 'rad'; did you mean 'red'? Known: red, or a path such as package.module.Name
    """  # noqa: E501

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._factories: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorate a class or function so that `create(name)` calls it."""

        def decorate(factory: Any) -> Any:
            self._factories[name] = factory
            return factory

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def create(self, name: str, **options: Any) -> Any:
        """Make the object registered as `name`, or found at the import path `name`.

        Raises:
            LitPruneError: The name is unknown, or the options do not fit its factory.
        """
        factory = self._factories.get(name) or self._imported(name)
        try:
            return factory(**options)
        except TypeError as error:
            raise LitPruneError(f"{self.noun} {name!r} does not take these options: {error}") from error

    def _imported(self, path: str) -> Callable[..., Any]:
        module, _, attribute = path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute) if module else self._unknown(path)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise LitPruneError(f"cannot import the {self.noun} {path!r}: {error}") from error

    def _unknown(self, name: str) -> Callable[..., Any]:
        close = difflib.get_close_matches(name, self._factories, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        known = ", ".join(sorted(self._factories))
        raise LitPruneError(f"unknown {self.noun} {name!r}{hint} Known: {known}, or a path such as package.module.Name")


def create(registry: Registry, spec: Any) -> Any:
    """What a name, or a mapping with `name` and options, stands for; an object that is none of these is itself.

    Raises:
        LitPruneError: The name is missing or unknown, or the options do not fit.
    """
    if callable(spec):
        return spec
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in options:
        raise LitPruneError(f"a {registry.noun} needs a name; found {options}")
    return registry.create(options.pop("name"), **options)


def described(spec: Any, made: Any) -> dict[str, Any]:
    """Name and options of what `create` made of a spec, for a plan's readers."""
    options = asdict(made) if is_dataclass(made) and not isinstance(made, type) else {}
    if isinstance(spec, str):
        return {"name": spec, **options}
    return {**options, **spec} if isinstance(spec, Mapping) else {"name": type(spec).__qualname__, **options}
