"""Names for scorers and searches: a dict, a decorator, a did-you-mean. Third parties pass a class path instead."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from lit_prune.errors import LitPruneError


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
        except (ImportError, AttributeError) as error:
            raise LitPruneError(f"cannot import the {self.noun} {path!r}: {error}") from error

    def _unknown(self, name: str) -> Callable[..., Any]:
        close = difflib.get_close_matches(name, self._factories, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        known = ", ".join(sorted(self._factories))
        raise LitPruneError(f"unknown {self.noun} {name!r}{hint} Known: {known}, or a path such as package.module.Name")
