"""Collects what the tests of every architecture found, and holds docs/reference/architectures.md against it.

A pytest plugin (see addopts). `make architectures` writes the table; a full run fails where the table says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lit_prune.files import markdown_table
from tests.zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs/reference/architectures.md"
START, END = "<!-- table: written by `make architectures` -->", "<!-- end of table -->"
FORM = "residual form"
COLUMNS = (
    "runtimes",
    "LoRA",
    FORM,
    "mute",
    "remove",
    "scoring",
    "generate",
    "static cache",
    "save, load",
    "resume",
    "whole blocks",
    "costs",
    "foldable",
    "refit",
)

_cells: dict[str, dict[str, str]] = {}


def capability(name: str) -> Callable[..., Any]:
    """Mark a test as the one that fills a column, and give it every architecture in turn."""

    def mark(test: Callable[..., Any]) -> Callable[..., Any]:
        every = pytest.mark.parametrize("architecture", ZOO)
        return pytest.mark.capability(name)(every(test))

    assert name in COLUMNS
    return mark


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-architectures", action="store_true", help="write the table of docs/reference/architectures.md"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    properties = dict(report.user_properties)
    if report.when == "call" and "capability" in properties:
        cell = str(properties.get("cell", "")) if report.passed else "FAILS"
        _cells.setdefault(str(properties["architecture"]), {})[str(properties["capability"])] = cell


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    if unknown := [architecture for architecture in ZOO if set(_cells.get(architecture, {})) != set(COLUMNS)]:
        if session.config.getoption("--write-architectures"):
            print(f"\ndocs/reference/architectures.md is not written: {', '.join(unknown)} were not run")
        return
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    new = f"{before}{START}\n{_table()}\n{END}{rest.partition(END)[2]}"
    if session.config.getoption("--write-architectures"):
        PAGE.write_text(new, encoding="utf-8")
    elif new != text:
        print("\ndocs/reference/architectures.md says something else than the tests: run `make architectures`")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _table() -> str:
    lines = [
        "",
        f"Tested with transformers {version('transformers')}, torch {version('torch').partition('+')[0]} on a CPU, and "
        f"peft {version('peft')}; {len(ZOO)} tiny models with random weights, 4 blocks each.",
        "",
    ]
    rows = [[architecture, *(_cells[architecture][column] for column in COLUMNS)] for architecture in ZOO]
    heads = ["model", *COLUMNS]
    return "\n".join([*lines, markdown_table(heads, rows, heads), ""])
