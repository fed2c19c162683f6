"""What a model occupies while it reads and writes: weights, cache, and the most that is alive at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

from lit_prune.anatomy import cache_of


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model occupies while it reads and writes.

    Weights are parameters and buffers, tied ones once; the cache is that of keys and values at the end; the peak is the
    weights and the most that tensors of the run took at a time, without what kernels use inside.
    """

    weights: int
    cache: int
    peak: int


def measure_footprint(model: PreTrainedModel, run: Callable[[], Any]) -> Footprint:
    """Run a model, in memory already, and count the bytes that are alive, on any device.

    `run` reads and writes with the model, and returns the last output, whose cache is measured.
    """
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    weights = sum({storage._cdata: storage.nbytes() for storage in storages}.values())
    with _Allocations() as seen:
        output = run()
        layers = getattr(cache_of(output), "layers", ())
        cached = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        cache = sum(tensor.nbytes for tensor in cached if isinstance(tensor, Tensor))
    return Footprint(weights, cache, weights + seen.peak)


class _Allocations(TorchDispatchMode):
    """Counts the bytes of storages that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_iter(found):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._note(leaf, given)
        return found

    def _note(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live or key in given:
            return
        self.live[key] = storage.nbytes()
        weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
