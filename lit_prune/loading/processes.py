"""What several processes of one run have in common: sums, what process 0 says, and work that it does for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from lit_prune.errors import LitPruneError, MeasureError
from lit_prune.loading.trees import is_a

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.fabric import Fabric

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """Processes that Lightning has brought together, of which this is number `rank`; by default one process alone.

    Tensors must be on `device` for a collective, or where they are when None. `reduce` takes a tensor, which it may
    change, and `reduce_op` (`sum` or `mean`); `broadcast` gives the value that process 0 has.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    reduce: Callable[..., Any] | None = None
    broadcast: Callable[[Any], Any] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which reads, writes and speaks for all."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same to the last bit on each."""
        return self._reduced(tensor, "sum")

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return self._reduced(tensor, "mean")

    def agree(self, value: Value) -> Value:
        """What process 0 says."""
        return value if self.broadcast is None else cast(Value, self.broadcast(value))

    def first(self, work: Callable[[], Value]) -> Value:
        """Work on process 0 while the others wait, and give all of them the outcome.

        Where the work fails, process 0 raises what it did, and the others a LitPruneError.
        """
        if self.size == 1:
            return work()
        error: Exception | None = None
        found: Value | None = None
        if self.is_first:
            try:
                found = work()
            except Exception as caught:
                error = caught
        failed, found = self.agree((error is not None, found))
        if error is not None:
            raise error
        if failed:
            raise LitPruneError("process 0 failed; its error says why")
        return cast(Value, found)

    def require_same(self, settings: object) -> None:
        """Refuse with a MeasureError, on all processes, to go on where they would search different things."""
        if int(self.sum(torch.tensor(int(settings != self.agree(settings))))):
            raise MeasureError(
                "the processes hold different models, calibration tokens or settings; give all of them the same "
                "(weights that are drawn need the same seed)"
            )

    def _reduced(self, tensor: Tensor, how: str) -> Tensor:
        if self.reduce is None or self.size == 1:
            return tensor
        found = self.reduce(tensor.to(self.device or tensor.device, copy=True), reduce_op=how)
        return cast(Tensor, found).to(tensor.device)


def processes_of_fabric(fabric: Fabric | None) -> Processes:
    """The processes of Lightning's Fabric, which is launched; this one alone where there is no Fabric.

    A LitPruneError says that its strategy takes a model apart otherwise than by FSDP2.
    """
    if fabric is None:
        return Processes()
    from lightning.fabric.strategies.ddp import DDPStrategy
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
    from lightning.fabric.strategies.single_device import SingleDeviceStrategy

    if not is_a(fabric.strategy, SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy):
        raise LitPruneError(
            f"{type(fabric.strategy).__name__} is not supported; use a single device or strategy='ddp', and for a "
            "model that no device holds lit_prune.shard(model, mesh) beside it (FSDP2)"
        )
    return Processes(fabric.global_rank, fabric.world_size, fabric.device, fabric.all_reduce, fabric.broadcast)


def processes_of_accelerator(accelerator: Any) -> Processes:
    """The processes of Hugging Face's Accelerator, which replicates the model on each."""
    from accelerate.utils import broadcast_object_list, reduce

    return Processes(
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        lambda tensor, reduce_op: reduce(tensor, reduction=reduce_op),
        lambda value: broadcast_object_list([value])[0],
    )


def processes_of_trainer(trainer: Trainer) -> Processes:
    """The processes of a Trainer, whatever its strategy; call it once they have met."""
    strategy = trainer.strategy
    return Processes(trainer.global_rank, trainer.world_size, strategy.root_device, strategy.reduce, strategy.broadcast)
