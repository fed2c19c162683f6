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


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Attributes:
        weights: Parameters and buffers, tied ones once.
        cache: Keys and values at the end.
        peak: Weights, and the most that tensors of the run took at a time; what kernels use inside is not seen.
    """

    weights: int
    cache: int
    peak: int


def measure_footprint(model: PreTrainedModel, run: Callable[[], Any]) -> Footprint:
    """Run a model and count, on any device.

    Args:
        model: In memory already.
        run: Reads and writes; returns the last output, whose cache is measured.
    """
    storages = [each.untyped_storage() for each in (*model.parameters(), *model.buffers())]
    weights = sum({each._cdata: each.nbytes() for each in storages}.values())
    with _Allocations() as seen:
        output = run()
        layers = getattr(getattr(output, "past_key_values", None), "layers", ())
        cached = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        cache = sum(each.nbytes for each in cached if isinstance(each, Tensor))
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
        given = {each.untyped_storage()._cdata for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_iter(found):
            if isinstance(each, Tensor) and each.device.type != "meta":
                self._note(each, given)
        return found

    def _note(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live or key in given:
            return
        self.live[key] = storage.nbytes()
        weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
