"""A function's signature and docstring as a command line, by jsonargparse."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import getdoc, signature
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from lit_prune.errors import DataError, LitPruneError, ModelError
from lit_prune.export import require_empty
from lit_prune.files import beside, destination, obstacle
from lit_prune.loading.devices import require_device
from lit_prune.loading.sources import locate


def call(
    function: Callable[..., None],
    verb: str,
    arguments: Sequence[str],
    positionals: Sequence[str],
    flags: Sequence[str] = (),
    several: Sequence[str] = (),
) -> None:
    """Parse and call.

    Args:
        function: Its parameters are the options, its docstring the help.
        verb: Its name on the command line.
        arguments: What follows the verb.
        positionals: Parameters that are given by position, in this order.
        flags: Those that are on where they are named, and take no value.
        several: Of the positionals, those that take one value or more.
    """
    parser = ArgumentParser(prog=f"lit-prune {verb}", description=(getdoc(function) or "").partition("\n\n")[0])
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    described = {each.arg_name: each.description for each in _documented(function)}
    for name in positionals:
        number: dict[str, Any] = {"nargs": "+"} if name in several else {}
        parser.add_argument(name, type=str, help=described.get(name), **number)
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=described.get(name))
    parser.add_function_arguments(function, skip={*positionals, *flags}, sub_configs=True)
    settings: dict[str, Any] = parser.instantiate(parser.parse_args(_with_lists(function, arguments))).as_dict()
    settings.pop("config")
    require_numbers(settings)
    function(**settings)


LEAST = {
    "window": 2,
    **dict.fromkeys(("num_windows", "val_windows", "num_unseen", "batch_size", "stride", "limit", "num_prompts"), 1),
    **dict.fromkeys(("max_new_tokens", "prompt_tokens", "new_tokens", "batch", "repeats", "measured_tokens"), 1),
    **dict.fromkeys(("devices", "forks", "tokens"), 1),
    **dict.fromkeys(("warmup", "seed", "temperature", "patience"), 0),
}
"""The least values of options, by their names in every verb."""
MOST, MOST_OF_SEED = 2**31 - 1, 2**32 - 1


def require_numbers(settings: Any, name: str = "") -> None:
    """Refuse numbers that no option takes, whether the rest of the command uses them or not.

    Args:
        settings: Of a command, as they were parsed.
        name: Of what they are in.

    Raises:
        LitPruneError: One is too small, too large, or not finite; the message names it.
    """
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = {each.name: getattr(settings, each.name) for each in fields(settings)}
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            require_numbers(value, str(key))
    elif isinstance(settings, list | tuple):
        for value in settings:
            require_numbers(value, name)
    elif isinstance(settings, int | float):
        most = MOST_OF_SEED if name == "seed" else MOST
        if not math.isfinite(settings):
            raise LitPruneError(f"{name} is a finite number; found {settings}")
        if settings < LEAST.get(name, -math.inf):
            raise LitPruneError(f"{name} is {LEAST[name]} or more; found {settings}")
        if isinstance(settings, int) and abs(settings) > most:
            raise LitPruneError(f"{name} is {most:,} at most; found {settings}")


def _with_lists(function: Callable[..., None], arguments: Sequence[str]) -> list[str]:
    """The arguments with brackets around what should be a list: `--tasks piqa,arc` is `--tasks '[piqa, arc]'`."""
    lists = {
        f"--{each.name}": str(each.annotation).startswith("list[str]")
        for each in signature(function).parameters.values()
        if str(each.annotation).startswith("list[")
    }
    found: list[str] = []
    for each in arguments:
        name, equals, value = each.partition("=")
        if found and found[-1] in lists:
            found.append(_bracketed(each, words=lists[found[-1]]))
        else:
            found.append(f"{name}={_bracketed(value, words=lists[name])}" if equals and name in lists else each)
    return found


def _bracketed(value: str, *, words: bool) -> str:
    # An option in the place of the value is for the parser to tell.
    if value.startswith(("[", "--")) or value == "null":
        return value
    # Names of files may hold what is YAML.
    return json.dumps([each.strip() for each in value.split(",") if each.strip()]) if words else f"[{value}]"


def model_names(models: str) -> list[str]:
    """The names in a list with commas between them.

    Raises:
        LitPruneError: There is none, or a file or folder that is named is not there.

    Example:
        >>> model_names("pruned, healed")
        ['pruned', 'healed']
    """
    names = [each.strip() for each in models.split(",") if each.strip()]
    if not names:
        raise LitPruneError("name at least one model")
    for name in names:
        locate(name)  # the last one is looked for before the first is measured
    return names


def text_labels(texts: Sequence[str]) -> list[str]:
    """What texts are called in tables: the names of their files, without folder and ending.

    Raises:
        DataError: Two would be called the same.
    """
    labels = [Path(text).stem for text in texts]
    if len(set(labels)) < len(labels):
        raise DataError(f"two texts to measure on would have one name: {', '.join(labels)}")
    return labels


def require_writable(output: str | None, *, inside: bool = False) -> None:
    """Check, before long work, that a file can be written, or files into a folder.

    Args:
        output: Its name; nothing is checked where None.
        inside: Whether it is a folder, which may be there already.

    Raises:
        LitPruneError: Something is in the way.
    """
    if output is None:
        return
    reason = obstacle(destination(output), inside=inside)
    if reason is None and not inside and os.path.isdir(output):
        reason = f"it is a folder; name a file, such as {Path(output) / 'page.md'}"
    if reason is not None:
        raise LitPruneError(f"cannot write {output}: {reason}")


def still_free(target: Path) -> Path:
    """The folder that was asked for, or one beside it where something came there during long work."""
    try:
        return require_empty(target)
    except ModelError:
        return beside(target)


def default_device(device: str | None) -> str:
    """The device that was named, else a GPU where there is one.

    Raises:
        ModelError: PyTorch does not find what was named.
    """
    if device is not None:
        require_device(device)
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _documented(function: Callable[..., None]) -> list[Any]:
    from docstring_parser import parse

    return parse(getdoc(function) or "").params
