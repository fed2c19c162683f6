"""A second model over the same weights: modules of its own, so that surgery on it leaves the first one whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lit_prune.anatomy import language_model
from lit_prune.errors import ModelError
from lit_prune.surgery.sharded import is_sharded


def sharing_copy(model: Any) -> PreTrainedModel:
    """Copy a model's modules, config and generation config, and share every tensor with it.

    Parameters, buffers and what quantised layers and offloading hooks hold stay the same objects: nothing is allocated,
    tied weights stay tied, and weights that are changed in place are changed in both. A peft wrapper is left out, its
    layers are not.

    Raises:
        ModelError: The weights are sharded over processes by FSDP2, which knows one owner of each.
    """
    network = language_model(model)
    if is_sharded(network):
        raise ModelError("weights that are sharded over processes cannot be those of two models; load it unsharded")
    # Parameters copy themselves without asking a mode; other tensors ask.
    with _SharedTensors():
        twin: PreTrainedModel = copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})
    return twin


class _SharedTensors(TorchFunctionMode):
    """Makes `deepcopy` take tensors as they are, whatever holds them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return args[0] if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))
