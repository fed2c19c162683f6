"""A function's signature and docstring as a command line, by jsonargparse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import getdoc
from typing import Any

from jsonargparse import ArgumentParser


def call(
    function: Callable[..., None],
    verb: str,
    arguments: Sequence[str],
    positionals: Sequence[str],
    flags: Sequence[str] = (),
) -> None:
    """Parse and call.

    Args:
        function: Its parameters are the options, its docstring the help.
        verb: Its name on the command line.
        arguments: What follows the verb.
        positionals: Parameters that are given by position, in this order.
        flags: Those that are on where they are named, and take no value.
    """
    parser = ArgumentParser(prog=f"lit-prune {verb}", description=(getdoc(function) or "").partition("\n\n")[0])
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    described = {each.arg_name: each.description for each in _documented(function)}
    for name in positionals:
        parser.add_argument(name, type=str, help=described.get(name))
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=described.get(name))
    parser.add_function_arguments(function, skip={*positionals, *flags}, sub_configs=True)
    settings: dict[str, Any] = parser.instantiate(parser.parse_args(list(arguments))).as_dict()
    settings.pop("config")
    function(**settings)


def _documented(function: Callable[..., None]) -> list[Any]:
    from docstring_parser import parse

    return parse(getdoc(function) or "").params
