"""Models that no device holds, sharded over processes with PyTorch's FSDP2, and whole again for saving."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers, language_model
from lit_prune.errors import ModelError
from lit_prune.loading.autoload import teaching
from lit_prune.loading.devices import with_tensors
from lit_prune.surgery import is_sharded, set_tombstones_aside

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DATA, TENSOR = "data_parallel", "tensor_parallel"
"""What Lightning's ModelParallelStrategy calls the dimensions of its mesh."""


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model over processes, in place: block by block, and what is around the blocks.

    A process then holds a share of every weight, and gathers a block's while it runs. Weights are those of process 0,
    as with DDP. Call it on every process, from `LightningModule.configure_model` with `self.device_mesh`; `LitCausalLM`
    does so. A sharded model stays as it is.

    Args:
        model: A causal language model, whole on every process, perhaps with adapters or wrapped by peft.
        mesh: A mesh of one dimension, or of Lightning's two.

    Raises:
        ModelError: The mesh splits single layers too (tensor parallel).
    """
    from torch.distributed.fsdp import fully_shard

    root = language_model(model)
    if is_sharded(root):
        return
    names = mesh.mesh_dim_names or ()
    if TENSOR in names and mesh[TENSOR].size() > 1:
        raise ModelError(
            "layers are sharded over processes as a whole; give ModelParallelStrategy tensor_parallel_size=1 and a "
            "data_parallel_size of all processes"
        )
    mesh = mesh[DATA] if DATA in names else mesh
    set_tombstones_aside(root)
    for part in (*find_sublayers(root).block_list(root), root):
        _take_from_first(part, mesh)
        fully_shard(part, mesh=mesh)


def whole_copy(model: nn.Module) -> PreTrainedModel | None:
    """A model that can be saved by process 0: itself, or where it is sharded a whole copy in the CPU's memory.

    All processes of a sharded model, which has no adapters then, must call it; the others get None.
    """
    root = language_model(model)
    if not is_sharded(root):
        return cast(PreTrainedModel, root)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    state = get_model_state_dict(root, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.get_rank() != 0:
        return None
    # The class that FSDP2 has put on the model stands before its own.
    stock = next(base for base in type(root).__mro__[1:] if not issubclass(base, FSDPModule))
    with teaching(True):
        return with_tensors(stock, copy.deepcopy(root.config), cast(dict[str, Tensor], state), root)


def _take_from_first(part: nn.Module, mesh: DeviceMesh) -> None:
    """Give a part the weights that process 0 has: shards of models that were drawn apart would be no model at all."""
    from torch.distributed.tensor import DTensor

    group = mesh.get_group()
    part.to(torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" else "cpu")
    with torch.no_grad():
        for tensor in (*part.parameters(), *part.buffers()):
            if not isinstance(tensor, DTensor):
                torch.distributed.broadcast(tensor.data, torch.distributed.get_global_rank(group, 0), group)
