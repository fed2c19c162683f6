"""Training examples that a compensation is fitted on, read by their numbers: the order of training stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch

from lit_prune.healing import HELD_BACK
from lit_prune.loading.processes import Processes
from lit_prune.measure import counted_positions, share_of_rows

from .validation import ValidationBatch

MOST_TOKENS = 49_152
"""Tokens that are enough to fit projections on, of all processes together."""


def unnumbered(loaders: Sequence[Any]) -> str | None:
    """Why examples of the training data cannot be drawn to fit on, and what to do; None where they can."""
    total = 0
    for loader in loaders:
        dataset = getattr(loader, "dataset", None)
        if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__") or not hasattr(loader, "collate_fn"):
            return (
                "refit draws training examples by their numbers, and those of this training data have none: give a "
                "DataLoader over a data set with a length"
            )
        total += len(dataset)
    if total < HELD_BACK:
        return f"refit holds back one training example of {HELD_BACK}, and there are {total}: give more"
    return None


def training_batches(
    loaders: Sequence[Any], epoch: int, processes: Processes, transferred: Callable[[Any], Any] = lambda batch: batch
) -> list[ValidationBatch]:
    """This process's training batches, of examples drawn from the training data, as many as have enough tokens.

    The draw is another in every epoch. A batch is as the loader collates it, and as `transferred` gives it on, on the
    CPU.
    """
    batches: list[ValidationBatch] = []
    wanted = MOST_TOKENS / processes.size / len(loaders)
    for loader in loaders:
        order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(epoch)).tolist()
        size = (loader.batch_size or 1) * processes.size
        number = 0
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            if len(rows) < processes.size:
                break  # every process gets as many batches, which all of them sum over
            own = rows[share_of_rows(len(rows), processes)]
            batch = transferred(loader.collate_fn([loader.dataset[index] for index in own]))
            batches.append(ValidationBatch(batch, 0, 0))
            tokens = int(counted_positions(batches[-1].scored).sum())
            number = number or processes.agree(math.ceil(wanted / max(1, tokens)))
            if first // size + 1 >= number:
                break
    return batches
