"""Several processes that measure one set of tokens: each takes some sequences of every batch, and sums are of all.

Every process holds the whole model, or a shard of it and runs it with the others; all find the same losses and decide
the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_prune.errors import DataError
from lit_prune.loading.processes import Processes
from lit_prune.measure.batches import IGNORED, input_ids_of, is_divisible, labels_of, rows_of
from lit_prune.measure.journal import Journal, Key, batch_of


def share_of_rows(num_sequences: int, processes: Processes) -> slice:
    """Which of a batch's sequences are this process's, perhaps none.

    Example:
        >>> share_of_rows(5, Processes(rank=1, size=2))
        slice(3, 5, None)
    """
    fewest, rest = divmod(num_sequences, processes.size)
    start = processes.rank * fewest + min(processes.rank, rest)
    return slice(start, start + fewest + (processes.rank < rest))


def shares_of(batches: Sequence[Mapping[str, Any]], processes: Processes) -> list[Mapping[str, Any]]:
    """This process's sequences of every batch.

    Where a batch has fewer sequences than there are processes, some run one of them for nothing: they must take part,
    and its labels are masked.

    Args:
        batches: The batches, as `read_batches` gives them.
        processes: The processes that share them.

    Raises:
        DataError: No batch has a sequence for each process; or one has images, which are of no known sequence.
    """
    largest = max((len(input_ids_of(batch)) for batch in batches), default=processes.size)
    if largest < processes.size:
        raise DataError(
            f"{processes.size} processes share the sequences of a batch, and the largest batch has {largest}: give "
            f"batches of {processes.size} at least, or start fewer processes"
        )
    return [_share(batch, processes) for batch in batches] if processes.size > 1 else list(batches)


def _share(batch: Mapping[str, Any], processes: Processes) -> Mapping[str, Any]:
    num = len(input_ids_of(batch))
    rows = share_of_rows(num, processes)
    idle = rows.start == rows.stop
    if idle and batch.get("labels", batch["input_ids"]).shape != batch["input_ids"].shape:
        raise DataError(f"a batch of {num} sequences cannot be shared by {processes.size} processes: give larger ones")
    if not is_divisible(batch):
        raise DataError(
            f"processes share the sequences of a batch, and among its inputs ({', '.join(sorted(batch))}) are some "
            "of which lit-prune cannot tell what belongs to which sequence: use one process"
        )
    share = rows_of(batch, slice(0, 1) if idle else rows)
    return {**share, "labels": torch.full_like(labels_of(share), IGNORED)} if idle else share


class SharedJournal(Journal):
    """A journal on every process, of whole batches: each measures its sequences, process 0 writes what all measured.

    So a search may go on with another number of processes.

    Args:
        path: The file of the journal, which process 0 reads and writes; None keeps it in memory.
        header: What the measurements are valid for, as in `Journal`.
        processes: The processes that share the search.
        num_sequences: How many sequences each batch has.

    Raises:
        MeasureError: The file is of another search, or damaged; or the processes have different headers.
    """

    def __init__(
        self, path: str | Path | None, header: Mapping[str, Any], processes: Processes, num_sequences: Sequence[int]
    ) -> None:
        super().__init__()
        processes.require_same(header)

        def read() -> dict[Key, tuple[list[float], int]]:
            Journal.__init__(self, path, header)
            return self._known

        self._known = processes.first(read)
        self._earlier = set(self._known)
        self._processes = processes
        self._num_sequences = num_sequences

    def __getitem__(self, key: Key) -> list[float]:
        """The loss sums of this process's sequences of the batch, in nats; 0 of the one that it runs for nothing."""
        return super().__getitem__(key)[self._rows(key)] or [0.0]

    def put(self, key: Key, nll: list[float], num_blocks: int) -> None:
        """Keep what all processes measured of one batch; each calls it with its own sequences."""
        if self._processes.size > 1:
            rows = self._rows(key)
            whole = torch.zeros(self._num_sequences[batch_of(key)], dtype=torch.float64)
            whole[rows] = torch.tensor(nll[: rows.stop - rows.start], dtype=torch.float64)
            nll = self._processes.sum(whole).tolist()
        super().put(key, nll, num_blocks)

    def unshared(self) -> Journal:
        """The same for batches that every process measures whole."""
        same = Journal()
        same._file, same._known, same._earlier = self._file, self._known, self._earlier
        return same

    def _rows(self, key: Key) -> slice:
        return share_of_rows(self._num_sequences[batch_of(key)], self._processes)
