"""Names for scorers and searches: a dict, a decorator, a did-you-mean. Third parties pass a class path instead."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, ItemsView, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar, cast

from lit_prune.errors import LitPruneError, did_you_mean

Part = TypeVar("Part")
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

    def items(self) -> ItemsView[str, Callable[..., Any]]:
        """Names with the factories behind them, in the order in which they were registered."""
        return self._factories.items()

    def create(self, name: str, **options: Any) -> Any:
        """Make the object registered as `name`, or found at the import path `name`.

        A function at a path that wants arguments besides the options is no factory, but the object itself.

        Raises:
            LitPruneError: The name is unknown, or the options do not fit its factory.
        """
        if not isinstance(name, str):
            raise LitPruneError(f"the name of a {self.noun} is text; found {name!r}")
        known = name in self._factories
        factory = self._factories[name] if known else self._imported(name)
        try:
            if not known and _is_object(factory, options):
                return partial(factory, **options) if options else factory
            return factory(**options)
        except TypeError as error:
            raise LitPruneError(f"{self.noun} {name!r} does not take these options: {error}") from error

    def _imported(self, path: str) -> Callable[..., Any]:
        module, _, attribute = path.rpartition(".")
        if not module:
            hint, known = did_you_mean(path, self._factories) or ".", ", ".join(sorted(self._factories))
            raise LitPruneError(
                f"unknown {self.noun} {path!r}{hint} Known: {known}, or a path such as package.module.Name"
            )
        try:
            with _beside_the_work():
                found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        # Whatever the user's own module raises.
        except Exception as error:
            why = str(error) if isinstance(error, ImportError | AttributeError) else repr(error)
            raise LitPruneError(f"cannot import the {self.noun} {path!r}: {why}") from error
        return found


def create(registry: Registry, spec: Any) -> Any:
    """What a name, or a mapping with `name` and options, stands for; an object that can be called is itself.

    Raises:
        LitPruneError: The name is missing or unknown, the options do not fit, or what it stands for cannot be called.
    """
    if isinstance(spec, str | Mapping):
        options = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "name" not in options:
            raise LitPruneError(f"a {registry.noun} needs a name; found {options}")
        made = registry.create(options.pop("name"), **options)
    else:
        made = spec() if isinstance(spec, type) else spec
    if not callable(made):
        raise LitPruneError(f"a {registry.noun} is called with what it works on; {spec!r} cannot be called")
    return made


def with_defaults(interface: type[Part], own: Any) -> Part:
    """A user's own function or object as one of an interface: the public attributes and methods there are defaults."""
    if isinstance(own, interface):
        return own
    call = {"__call__": lambda self, *given, **named: own(*given, **named)}
    made = cast(Part, type(type(own).__name__, (interface,), call)())
    names = [name for name in vars(interface) if not name.startswith("_")]
    vars(made).update({name: getattr(own, name) for name in names if hasattr(own, name)})
    return made


def described(spec: Any, made: Any) -> dict[str, Any]:
    """Name and options of what `create` made of a spec, for a plan's readers."""
    if is_dataclass(made) and not isinstance(made, type):
        own = {field.name: getattr(made, field.name) for field in fields(made) if not field.name.startswith("_")}
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
    else:  # whatever else an object of the user's own holds is not for a plan
        held = getattr(made, "__dict__", {}).items()
        plain = bool | int | float | str | None
        options = {name: value for name, value in held if not name.startswith("_") and isinstance(value, plain)}
    if isinstance(spec, str):
        return {"name": spec, **options}
    if isinstance(spec, Mapping):
        return {**options, **spec}
    return {"name": getattr(spec, "__qualname__", type(spec).__qualname__), **options}


def _is_object(found: Any, options: Mapping[str, Any]) -> bool:
    if isinstance(found, type) or not callable(found):
        return not callable(found)
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in inspect.signature(found).parameters.values()
        if parameter.name not in options
    )


@contextmanager
def _beside_the_work() -> Iterator[None]:
    """Modules in the working folder are found too, behind all others: a console script does not look there."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
