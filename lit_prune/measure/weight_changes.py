"""Whether a model's weights are what they were: asked before what was measured of them is believed again."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_prune.loading.processes import Processes
from lit_prune.surgery import is_sharded, reshard

SAMPLED = 64
"""Numbers of each weight that are looked at; a step of training moves almost all of them."""


class _Seen(NamedTuple):
    """A parameter as it was: fused optimizers leave its version as it is, and `.data =` does so too.

    Tuples are compared by identity first, and so references to the same parameter; dataclasses of Python 3.13 are not.
    """

    parameter: weakref.ref[nn.Parameter]
    version: int
    address: int
    sample: bytes


class WeightChanges:
    """Tells whether a model's weights have changed, in whatever way: in place, behind autograd's back, exchanged.

    What was removed in between is no change.

    Attributes:
        num_corrections: How often they were changed on purpose, the same in every process.
        digest: What tells the weights after the last other change from others; empty before the first.
    """

    def __init__(self) -> None:
        self.num_corrections = 0
        self.digest = ""
        self._seen: dict[int, _Seen] = {}

    def have_changed(self, model: nn.Module, processes: Processes) -> bool:
        """Whether they are others than at the last call, in any process; all processes must ask."""
        if is_sharded(model):
            reshard(model)  # so that parameters are the shards that optimizers change
        before, self._seen = self._seen, _look(model)
        changed = bool(before) and any(before.get(name) != seen for name, seen in self._seen.items())
        if int(processes.sum(torch.tensor(int(changed)))) == 0:
            return False
        digest = hashlib.sha256(b"".join(seen.sample for seen in self._seen.values()))
        self.digest = f"w{digest.hexdigest()[:12]}"
        return True

    def correct(self) -> None:
        """Count a change on purpose, and take the weights as they are at the next call for unchanged."""
        self.num_corrections += 1
        self._seen = {}


def _look(model: nn.Module) -> dict[int, _Seen]:
    # What accelerate keeps elsewhere has another parameter on the meta device after every pass, and is not trained.
    here = [parameter for parameter in model.parameters() if not parameter.is_meta]
    return {
        id(parameter): _Seen(weakref.ref(parameter), parameter._version, parameter.data_ptr(), sample)
        for parameter, sample in zip(here, _samples(here), strict=True)
    }


def _samples(parameters: Sequence[nn.Parameter]) -> list[bytes]:
    """The bytes of some numbers of each, with one transfer from each device."""
    parts = [_sample(parameter) for parameter in parameters]
    by_device: dict[torch.device, list[Tensor]] = {}
    for part in parts:
        by_device.setdefault(part.device, []).append(part)
    fetched = {
        device: iter(torch.cat(own).cpu().split([len(part) for part in own]))  # type: ignore[no-untyped-call]
        for device, own in by_device.items()
    }
    return [bytes(next(fetched[part.device]).tolist()) for part in parts]


def _sample(parameter: Tensor) -> Tensor:
    local: Tensor = getattr(parameter, "to_local", lambda: parameter)().detach()
    if type(local).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return torch.empty(0, dtype=torch.uint8, device=local.device)  # torchao's, which is no plain tensor
    numbers = local.flatten()
    # An odd stride, as all rows of a matrix begin with the same column.
    return numbers[:: len(numbers) // SAMPLED | 1].contiguous().view(torch.uint8)
