"""The form of every progress bar: words, how much is done, how long it has taken, and what is going on."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

INTERVAL = 1.0
"""Seconds from one picture to the next."""


def open_bar(description: str, *, total: float | None, reached: float = 0, shown: bool = True) -> Any:
    """Open a bar of tqdm's on the error stream, which leaves nothing behind; without a total it shows no share."""
    form = "{desc}: {elapsed}{postfix}" if total is None else "{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}{postfix}"
    options = {"bar_format": form, "leave": False, "mininterval": INTERVAL}
    return tqdm(desc=description, total=total, initial=reached, disable=not shown, **options)


def time_left(seconds: float) -> str:
    """Write how long something will take yet.

    Example:
        >>> time_left(75.2)
        'about 01:15 left'
    """
    return f"about {tqdm.format_interval(seconds)} left"
