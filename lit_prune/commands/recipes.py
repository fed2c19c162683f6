"""Runs of `lit-prune fit` that are in every installation, and loggers for them, by their names."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_prune.errors import LitPruneError, did_you_mean

OPTIONS = ("--config", "-c")
FOLDERS = ("", "loggers/", "models/")
"""What names of runs begin with, of loggers behind a run (`--config quickstart --config loggers/csv`), and of runs on
well-known models."""
NAME = re.compile(rf"({'|'.join(FOLDERS)})[\w-]+(\.\d[\w-]*)*")
"""With a suffix or another folder it is a path, which the parser looks for; what has several lines is YAML."""


def with_recipes(arguments: Sequence[str]) -> list[str]:
    """The arguments with paths in place of the bare names behind `--config`; a file of that name is itself.

    Raises:
        LitPruneError: There is neither such a file nor such a run.
    """
    found: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if found and found[-1] in OPTIONS:
            found.append(_path(argument))
        else:
            found.append(f"{option}={_path(value)}" if equals and option in OPTIONS else argument)
    return found


def _path(name: str) -> str:
    if Path(name).is_file() or not NAME.fullmatch(name):
        return name
    known = {
        f"{folder}{path.name.removesuffix('.yaml')}": path
        for folder in FOLDERS
        for path in _folder().joinpath(folder).iterdir()
        if path.name.endswith(".yaml")
    }
    if name not in known:
        there = ", ".join(sorted(known))
        raise LitPruneError(f"there is no file {name}, and no run of that name{did_you_mean(name, known)}: {there}")
    return str(known[name])


def _folder() -> Any:
    return importlib.resources.files("lit_prune.commands.configs")
