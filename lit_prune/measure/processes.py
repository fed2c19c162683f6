"""Several processes that measure one set of tokens: each takes some sequences of every batch, and sums are of all.

Every process holds the whole model, or a shard of it and runs it with the others; all find the same losses and decide
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lit_prune.errors import DataError, LitPruneError, MeasureError
from lit_prune.measure.batches import IGNORED, input_ids_of, is_divisible, labels_of, rows_of
from lit_prune.measure.journal import Journal, Key, batch_of

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Found = TypeVar("Found")


class Processes:
    """The processes that share a search.

    Args:
        fabric: Lightning's, launched, with a strategy that leaves the model whole or shards it by FSDP2; None for this
            process alone.

    Attributes:
        rank: This one's number, 0-based.
        size: How many they are.

    Raises:
        LitPruneError: The strategy is another.
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        if fabric is not None:
            _require_supported(fabric)
        self._fabric = fabric
        self.rank = fabric.global_rank if fabric else 0
        self.size = fabric.world_size if fabric else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same to the last bit on each."""
        if self._fabric is None or self.size == 1:
            return tensor
        total = self._fabric.all_reduce(tensor.to(self._fabric.device, copy=True), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.to(tensor.device)

    def agree(self, name: str) -> str:
        """What process 0 says."""
        return name if self._fabric is None else self._fabric.broadcast(name)

    def first(self, work: Callable[[], Found]) -> Found:
        """Work on process 0 while the others wait, and give all of them the outcome.

        Raises:
            LitPruneError: It failed: on the other processes; process 0 raises what the work did.
        """
        if self._fabric is None or self.size == 1:
            return work()
        error: Exception | None = None
        found: Any = None
        if self.rank == 0:
            try:
                found = work()
            except Exception as caught:
                error = caught
        failed, found = self._fabric.broadcast((error is not None, found))
        if error is not None:
            raise error
        if failed:
            raise LitPruneError("process 0 failed; its error says why")
        return found  # type: ignore[no-any-return]

    def rows(self, num: int) -> slice:
        """Which of a batch's `num` sequences are this process's, perhaps none.

        Example:
            >>> Processes().rows(5)
            slice(0, 5, None)
        """
        each, rest = divmod(num, self.size)
        start = self.rank * each + min(self.rank, rest)
        return slice(start, start + each + (self.rank < rest))

    def shares(self, batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """This process's sequences of every batch.

        Where a batch has fewer sequences than there are processes, some run one of them for nothing: they must take
        part, and its labels are masked.

        Args:
            batches: As `read_batches` gives them.

        Raises:
            DataError: That is so of every batch; or one has images, which are of no known sequence.
        """
        largest = max((len(input_ids_of(batch)) for batch in batches), default=self.size)
        if largest < self.size:
            raise DataError(
                f"{self.size} processes share the sequences of a batch, and the largest batch has {largest}: give "
                f"batches of {self.size} at least, or start fewer processes"
            )
        return [self._share(batch) for batch in batches] if self.size > 1 else list(batches)

    def _share(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        num = len(input_ids_of(batch))
        rows = self.rows(num)
        idle = rows.start == rows.stop
        if idle and batch.get("labels", batch["input_ids"]).shape != batch["input_ids"].shape:
            raise DataError(f"a batch of {num} sequences cannot be shared by {self.size} processes: give larger ones")
        taken = slice(0, 1) if idle else rows
        if not is_divisible(batch):
            raise DataError(
                f"processes share the sequences of a batch, and among its inputs ({', '.join(sorted(batch))}) are some "
                "of which lit-prune cannot tell what belongs to which sequence: use one process"
            )
        share = rows_of(batch, taken)
        return {**share, "labels": torch.full_like(labels_of(share), IGNORED)} if idle else share

    def require_same(self, settings: object) -> None:
        """Refuse to go on where processes would search different things.

        Raises:
            MeasureError: On all of them.
        """
        if int(self.sum(torch.tensor(int(settings != self.first(lambda: settings))))):
            raise MeasureError(
                "the processes hold different models, calibration tokens or settings; give all of them the same "
                "(weights that are drawn need the same seed)"
            )


class SharedJournal(Journal):
    """A journal on every process, of whole batches: each measures its sequences, process 0 writes what all measured.

    So a search may go on with another number of processes.

    Args:
        path: See `Journal`; process 0 reads and writes it.
        header: See `Journal`.
        processes: Those that share the search.
        num_sequences: In each batch.

    Raises:
        MeasureError: See `Journal`; or the processes have other headers.
    """

    def __init__(
        self, path: str | Path | None, header: Mapping[str, Any], processes: Processes, num_sequences: Sequence[int]
    ) -> None:
        super().__init__()
        processes.require_same(header)
        opened: list[Journal] = []

        def read() -> dict[Key, tuple[list[float], int]]:
            opened.append(Journal(path, header))
            return opened[0]._known

        self._known = processes.first(read)
        self._earlier = set(self._known)
        self._file = opened[0]._file if opened else None
        self._processes = processes
        self._num_sequences = num_sequences

    def __getitem__(self, key: Key) -> list[float]:
        """The loss sums of this process's sequences of the batch, in nats."""
        return super().__getitem__(key)[self._rows(key)]

    def put(self, key: Key, nll: list[float], num_blocks: int) -> None:
        """Keep what all processes measured of one batch; each calls it with its own sequences."""
        if self._processes.size > 1:
            rows = self._rows(key)
            whole = torch.zeros(self._num(key), dtype=torch.float64)
            whole[rows] = torch.tensor(nll[: rows.stop - rows.start], dtype=torch.float64)
            nll = self._processes.sum(whole).tolist()
        super().put(key, nll, num_blocks)

    def unshared(self) -> Journal:
        """The same for batches that every process measures whole."""
        same = Journal()
        same._file, same._known, same._earlier = self._file, self._known, self._earlier
        return same

    def _rows(self, key: Key) -> slice:
        return self._processes.rows(self._num(key))

    def _num(self, key: Key) -> int:
        return self._num_sequences[batch_of(key)]


def _require_supported(fabric: Fabric) -> None:
    from lightning.fabric.strategies.ddp import DDPStrategy
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
    from lightning.fabric.strategies.single_device import SingleDeviceStrategy

    if not isinstance(fabric.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        raise LitPruneError(
            f"{type(fabric.strategy).__name__} is not supported; use a single device or strategy='ddp', and for a "
            "model that no device holds lit_prune.shard(model, mesh) beside it (FSDP2)"
        )
