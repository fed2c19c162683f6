"""Whether a model's weights are what they were: asked before what was measured of them is believed again."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_prune.loading.processes import Processes
from lit_prune.surgery import is_sharded, reshard

SAMPLED = 64
"""Numbers of each weight that are looked at; a step of training moves almost all of them."""


@dataclass(frozen=True)
class _Seen:
    """A parameter as it was: fused optimizers leave its version alone, `.data =` that of another tensor's."""

    parameter: weakref.ref[nn.Parameter]
    version: int
    address: int
    sample: bytes


class WeightChanges:
    """Tells whether a model's weights have changed, in whatever way: in place, behind autograd's back, exchanged.

    What was removed in between is no change.

    Attributes:
        mark: Of the weights as they were after the last change; empty before the first one.
    """

    def __init__(self) -> None:
        self.mark = ""
        self._seen: dict[int, _Seen] = {}

    def have_changed(self, model: nn.Module, processes: Processes) -> bool:
        """Whether they are others than at the last call.

        Args:
            model: Perhaps sharded; every process asks then.
            processes: The processes that measure together.
        """
        if is_sharded(model):
            reshard(model)  # so that parameters are the shards that optimizers change
        before, self._seen = self._seen, _look(model)
        changed = bool(before) and any(before.get(name) != seen for name, seen in self._seen.items())
        if int(processes.sum(torch.tensor(int(changed)))) == 0:
            return False
        digest = hashlib.sha256(b"".join(each.sample for each in self._seen.values()))
        self.mark = f"w{digest.hexdigest()[:12]}"
        return True

    def rebase(self) -> None:
        """Take the weights as they are at the next call for unchanged."""
        self._seen = {}


def _look(model: nn.Module) -> dict[int, _Seen]:
    # What accelerate keeps elsewhere has another parameter on the meta device after every pass, and is not trained.
    here = [each for each in model.parameters() if not each.is_meta]
    return {
        id(each): _Seen(weakref.ref(each), each._version, each.data_ptr(), sample)
        for each, sample in zip(here, _samples(here), strict=True)
    }


def _samples(parameters: Sequence[nn.Parameter]) -> list[bytes]:
    """The bytes of some numbers of each, with one transfer from each device."""
    parts = [_sample(each) for each in parameters]
    by_device: dict[torch.device, list[Tensor]] = {}
    for part in parts:
        by_device.setdefault(part.device, []).append(part)
    fetched = {device: iter(_bytes(each, torch.cat(each))) for device, each in by_device.items()}
    return [next(fetched[part.device]) for part in parts]


def _bytes(parts: Sequence[Tensor], joined: Tensor) -> list[bytes]:
    return [bytes(each.tolist()) for each in torch.split(joined.cpu(), [len(part) for part in parts])]


def _sample(parameter: Tensor) -> Tensor:
    local: Tensor = getattr(parameter, "to_local", lambda: parameter)().detach()
    if _is_packed(local):
        return torch.empty(0, dtype=torch.uint8, device=local.device)
    numbers = local.flatten()
    # An odd stride, as all rows of a matrix begin with the same column.
    return numbers[:: len(numbers) // SAMPLED | 1].contiguous().view(torch.uint8)


def _is_packed(tensor: Tensor) -> bool:
    """Whether it is torchao's, which is no plain tensor."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
