"""Wanda 2:4 (arXiv 2306.11695), the baseline of semi-structured sparsity: half of the weights in the blocks are zeroed.

Nothing becomes smaller by it, and faster only on GPUs with kernels for the pattern; it is here for its quality.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import LitPruneError
from lit_prune.measure import model_inputs, on_device
from lit_prune.surgery import evaluating

GROUP = 4


def wanda_2_4(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Zero the two of every four weights with the smallest |weight| * |input|, in place, by torchao.

    The linear layers in the blocks are changed, embeddings and head are not. Returns the share of all parameters that
    are zero now.

    Args:
        model: A causal language model.
        batches: Calibration batches with `input_ids` [batch, seq].

    Raises:
        LitPruneError: torchao is not installed, or there is no linear layer whose width is a multiple of four.
    """
    sparsifier = wanda_sparsifier()
    prefix = find_sublayers(model).blocks_path
    names = [
        f"{prefix}.{name}.weight"
        for name, module in model.get_submodule(prefix).named_modules()
        if isinstance(module, nn.Linear) and module.in_features % GROUP == 0
    ]
    if not names:
        raise LitPruneError("Wanda 2:4 needs linear layers in the blocks, with a multiple of four inputs")
    with evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.ao, about its own future
        sparsifier.prepare(model, [{"tensor_fqn": name} for name in names])
        for batch in batches:
            model(**model_inputs(model, on_device(batch, model.device)), use_cache=False)
        for group in sparsifier.groups:
            # torchao 0.18 sums squares over tokens and leaves them so; Wanda's norm is their root.
            group["module"].activation_post_process.norm.sqrt_()
        sparsifier.step()
        sparsifier.squash_mask()
    zeros = sum(int(torch.count_nonzero(parameter == 0)) for parameter in model.parameters())
    return zeros / sum(parameter.numel() for parameter in model.parameters())


def wanda_sparsifier() -> Any:
    """Torchao's sparsifier, set to 2:4; a LitPruneError where torchao is not installed."""
    try:
        sparsity: Any = importlib.import_module("torchao.sparsity")
    except ImportError as error:
        raise LitPruneError(f"Wanda 2:4 needs torchao: pip install 'lit-prune[sparse]' ({error})") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sparsity.WandaSparsifier(semi_structured_block_size=GROUP)
