"""A progress bar for sweeps: what is being measured, how far it is, how long it will take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from lit_prune.measure.what_if import Progress

LONGEST = 40
"""Letters of what is being measured: a set of many sublayers has a long name."""


@contextmanager
def progress_bar(description: str, *, shown: bool = True) -> Iterator[Progress]:
    """A bar on the error stream that counts decoder-block evaluations; nothing at all when not `shown`."""
    with tqdm(desc=description, unit="block", leave=False, disable=not shown, mininterval=1.0) as bar:

        def advance(done: int, total: int, what: str) -> None:
            if done < bar.n:
                bar.reset()  # the next round, with a time of its own
            bar.total = total
            bar.set_postfix_str(f"without {what[:LONGEST]}" if what else "", refresh=False)
            bar.update(done - bar.n)

        yield advance
