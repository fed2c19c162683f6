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

import docstring_parser
from jsonargparse import ArgumentParser

from lit_prune.commands.checks import require_there
from lit_prune.errors import DataError, LitPruneError, ModelError
from lit_prune.files import beside, destination, obstacle


def call(
    function: Callable[..., None],
    program: str,
    arguments: Sequence[str],
    *,
    flags: Sequence[str] = (),
    nested: Sequence[str] = (),
    looks: bool = True,
) -> None:
    """Read a command line by a function's signature and docstring, and call the function.

    Parameters that can be given by position are given so on the command line, a list as one value or more; all others
    are options, those in `flags` without a value. Where a default is a dataclass its fields are the options, with the
    parameter's name before them for those in `nested`, as in `--lora.rank`. `program` is the name that is shown. What
    the options name is looked for first, unless the function `looks` at nothing but a config.
    """
    groups = option_groups(function, nested)
    parser = _parser(function, program, flags, groups)
    settings: dict[str, Any] = parser.instantiate(parser.parse_args(_with_lists(function, arguments, nested))).as_dict()
    settings.pop("config")
    require_numbers(settings)
    for name, default in groups.items():
        settings[name] = type(default)(**{field.name: settings.pop(field.name) for field in fields(default)})
    if looks:
        require_there(settings)
    function(**settings)


def _parser(
    function: Callable[..., None], program: str, flags: Sequence[str], groups: Mapping[str, Any]
) -> ArgumentParser:
    parser = ArgumentParser(prog=program, description=(getdoc(function) or "").partition("\n\n")[0])
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(getdoc(function) or "").params}
    parameters = signature(function).parameters.values()
    positionals = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    for parameter in positionals:
        number: dict[str, Any] = {"nargs": "+"} if str(parameter.annotation).startswith("list[") else {}
        parser.add_argument(parameter.name, type=str, help=described.get(parameter.name), **number)
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=described.get(name))
    skipped: set[str | int] = {*flags, *groups, *(parameter.name for parameter in positionals)}
    parser.add_function_arguments(function, skip=skipped, sub_configs=True)
    for default in groups.values():
        parser.add_class_arguments(type(default), instantiate=False, sub_configs=True)
        parser.set_defaults(vars(default))
    return parser


def option_groups(function: Callable[..., None], nested: Sequence[str] = ()) -> dict[str, Any]:
    """Parameters of a verb whose fields are options of their own, with their defaults."""
    defaults = {parameter.name: parameter.default for parameter in signature(function).parameters.values()}
    return {name: default for name, default in defaults.items() if is_dataclass(default) and name not in nested}


def option_types(function: Callable[..., None], nested: Sequence[str] = ()) -> dict[str, str]:
    """The types of a verb's options as they are written in the code, by the options' names."""
    groups = option_groups(function, nested)
    own = {name: parameter.annotation for name, parameter in signature(function).parameters.items()}
    shared = [(field.name, field.type) for default in groups.values() for field in fields(default)]
    defaults = {name: signature(function).parameters[name].default for name in nested}
    inner = [(f"{name}.{field.name}", field.type) for name, group in defaults.items() for field in fields(group)]
    return {name: str(kind) for name, kind in (*own.items(), *shared, *inner) if name not in (*groups, *nested)}


LEAST = {
    "window": 2,
    **dict.fromkeys(("num_windows", "val_windows", "batch_size", "stride", "limit", "num_prompts"), 1),
    **dict.fromkeys(("max_new_tokens", "prompt_tokens", "new_tokens", "batch", "repeats", "measured_tokens"), 1),
    **dict.fromkeys(("devices", "forks", "tokens", "draws"), 1),
    **dict.fromkeys(("warmup", "seed", "temperature", "patience", "num_unseen", "draft_tokens"), 0),
}
"""The least values of options, by their names in every verb."""
MOST, MOST_OF_SEED = 2**31 - 1, 2**32 - 1


def require_numbers(settings: Any, name: str = "") -> None:
    """Refuse numbers that no option takes, in settings or in the part with this name, whether they are used or not."""
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = vars(settings)
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


def _with_lists(function: Callable[..., None], arguments: Sequence[str], nested: Sequence[str]) -> list[str]:
    """The arguments with brackets around what should be a list: `--tasks piqa,arc` is `--tasks '[piqa, arc]'`."""
    lists = {
        f"--{name}": kind.startswith("list[str]")
        for name, kind in option_types(function, nested).items()
        if kind.startswith("list[")
    }
    found: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if found and found[-1] in lists:
            found.append(_bracketed(argument, words=lists[found[-1]]))
        else:
            found.append(f"{name}={_bracketed(value, words=lists[name])}" if equals and name in lists else argument)
    return found


def _bracketed(value: str, *, words: bool) -> str:
    # An option in the place of the value is for the parser to tell.
    if value.startswith(("[", "--")) or value == "null":
        return value
    # Names of files may hold what is YAML.
    return json.dumps([part.strip() for part in value.split(",") if part.strip()]) if words else f"[{value}]"


def model_names(models: str) -> list[str]:
    """The names in a list with commas between them; a LitPruneError where there is none, or no such file or folder.

    Example:
        >>> model_names("pruned, healed")
        ['pruned', 'healed']
    """
    from lit_prune.loading.sources import locate

    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise LitPruneError("name at least one model")
    for name in names:
        locate(name)  # the last one is looked for before the first is measured
    return names


def text_labels(texts: Sequence[str]) -> list[str]:
    """Names of texts for tables, those of their files without folder and suffix; a DataError where two are the same."""
    labels = [Path(text).stem for text in texts]
    if len(set(labels)) < len(labels):
        raise DataError(f"two texts to measure on would have one name: {', '.join(labels)}")
    return labels


def require_writable(output: str | None, *, inside: bool = False) -> None:
    """Refuse, before long work, a file that cannot be written, or a folder (`inside`) that takes no file."""
    if output is None:
        return
    reason = obstacle(destination(output), inside=inside)
    if reason is None and not inside and os.path.isdir(output):
        reason = f"it is a folder; name a file, such as {Path(output) / 'page.md'}"
    if reason is not None:
        raise LitPruneError(f"cannot write {output}: {reason}")


def still_free(target: Path) -> Path:
    """The folder that was asked for, or one beside it where something came there during long work."""
    from lit_prune.export import require_empty

    try:
        return require_empty(target)
    except ModelError:
        return beside(target)


def default_device(device: str | None) -> str:
    """The device that was named, which PyTorch has to find, else a GPU where there is one."""
    import torch

    from lit_prune.loading.devices import require_device

    if device is not None:
        require_device(device)
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
