"""What a search will take on a model, by arithmetic on its shape alone: passes, FLOPs, bytes read, bytes in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import LitPruneError
from lit_prune.loading.models import skeleton
from lit_prune.measure.states import STATES_SHARE
from lit_prune.pruning import Pruner, expected_search
from lit_prune.searches import Budget

MODES: Mapping[str, tuple[str, bool]] = {
    "progressive": ("progressive", False),
    "lazy": ("lazy", False),
    "one_shot": ("one_shot", False),
    "progressive, stream": ("progressive", True),
    "one_shot, stream": ("one_shot", True),
}
"""The search, and whether one pass scores all candidates: block_influence, cosine, angular, relative_norm, sensitivity.
"""


@dataclass(frozen=True)
class SearchWork:
    """What a search in one of `MODES` runs to take out so many candidates.

    Decoder blocks, and passes through final norm and head, are counted times batches; `dense_passes` are the block
    evaluations in full passes over the calibration set.
    """

    mode: str
    num_removed: int
    block_evaluations: int
    head_evaluations: int
    dense_passes: float


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that decide what a search takes.

    `hidden` is the width of the residual stream, `vocab` the rows of the head, `block_parameters` those of one block,
    and `itemsize` the bytes of a weight and of a number in a state.
    """

    num_blocks: int
    hidden: int
    vocab: int
    block_parameters: int
    parameters: int
    itemsize: int = 2

    @classmethod
    def of(cls, model: Any) -> Sizes:
        """The sizes of a model on any device."""
        anatomy = find_sublayers(model)
        blocks = anatomy.block_list(model)
        return cls(
            num_blocks=len(anatomy.blocks),
            hidden=anatomy.facts().hidden_size,
            vocab=model.get_output_embeddings().weight.shape[0],
            block_parameters=sum(parameter.numel() for parameter in blocks[0].parameters()),
            parameters=anatomy.num_parameters,
            itemsize=model.dtype.itemsize,
        )


def require_mode(name: str) -> None:
    """Refuse what is none of `MODES` with a LitPruneError."""
    if name not in MODES:
        raise LitPruneError(f"unknown mode {name!r}; expected one of {', '.join(MODES)}")


def estimated_work(model: Any, mode: str, *, amount: float, num_batches: int) -> SearchWork:
    """Estimate what a search runs, before it is known which sublayers go, as `expected_search` does.

    Args:
        model: A causal language model on any device, the meta device too; nothing in it runs.
        mode: One of `MODES`.
        amount: Share of the parameters to remove.
        num_batches: Batches of the calibration set.

    Raises:
        LitPruneError: The mode is unknown, or the amount cannot be reached.
    """
    require_mode(mode)
    search, in_one_pass = MODES[mode]
    anatomy = find_sublayers(model)
    budget = Budget(amount, anatomy.num_parameters)
    Pruner(model).require_reachable(budget)
    sizes = [sublayer.num_parameters for sublayer in anatomy.sublayers]
    length = len(anatomy.blocks)
    found = expected_search(sizes, budget.target, num_blocks=length, search=search, in_one_pass=in_one_pass)
    blocks, heads = found.block_evaluations * num_batches, found.head_evaluations * num_batches
    return SearchWork(mode, found.num_removed, blocks, heads, found.dense_passes)


@dataclass(frozen=True)
class Load:
    """What a search asks of any device: FLOPs, two for a weight and token, and bytes of weights, read once a batch.

    Attention between tokens is left out.
    """

    flops: float
    bytes_read: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The longer of computing and reading.

        Example:
            >>> Load(flops=100.0, bytes_read=10.0).seconds(10.0, 2.0)
            10.0
        """
        return max(self.flops / flops_per_second, self.bytes_read / bytes_per_second)


def load_of(sizes: Sizes, work: SearchWork, tokens: int) -> Load:
    """What a search computes and reads, where a batch has so many tokens.

    Example:
        >>> sizes = Sizes(num_blocks=10, hidden=8, vocab=100, block_parameters=1000, parameters=12_000)
        >>> load_of(sizes, SearchWork("lazy", 1, block_evaluations=5, head_evaluations=3, dense_passes=0.5), tokens=4)
        Load(flops=59200, bytes_read=14800)
    """
    weights = work.block_evaluations * sizes.block_parameters + work.head_evaluations * sizes.hidden * sizes.vocab
    return Load(2 * weights * tokens, sizes.itemsize * weights)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device: its part of the weights, and states, kept states and logits of its sequences of a batch."""

    weights: float
    states: float
    kept: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.states + self.kept + self.logits


def memory_of(sizes: Sizes, *, batch_size: int, window: int, num_batches: int, devices: int = 1) -> DeviceMemory:
    """What a search takes on each of several devices that share weights and sequences, by FSDP2.

    With more than one device, the weights are also those of two whole blocks that are gathered.

    Args:
        sizes: The sizes of the model.
        batch_size: Sequences in a batch; every device has its share, and one at least.
        window: Tokens in a sequence.
        num_batches: Batches of the calibration set.
        devices: Number of devices.

    Example:
        >>> sizes = Sizes(num_blocks=10, hidden=8, vocab=100, block_parameters=1000, parameters=12_000)
        >>> memory_of(sizes, batch_size=2, window=16, num_batches=1)
        DeviceMemory(weights=24000.0, states=5120, kept=2400.0, logits=6400)
        >>> memory_of(sizes, batch_size=2, window=16, num_batches=1, devices=2)
        DeviceMemory(weights=16000.0, states=2560, kept=1200.0, logits=3200)
    """
    tokens = math.ceil(batch_size / devices) * window
    own = sizes.itemsize * sizes.parameters / devices
    gathered = 2 * sizes.itemsize * sizes.block_parameters if devices > 1 else 0
    states = sizes.num_blocks * tokens * sizes.hidden * sizes.itemsize
    kept = min(STATES_SHARE * own, states * num_batches)
    return DeviceMemory(own + gathered, states, kept, tokens * sizes.vocab * sizes.itemsize)


def named_shapes() -> dict[str, dict[str, Any]]:
    """The configs of well-known sizes of models, such as `8b`, by name."""
    text = resources.files("lit_prune.evaluation").joinpath("shapes.json").read_text(encoding="utf-8")
    return cast(dict[str, dict[str, Any]], json.loads(text))


def shaped(name: str) -> PreTrainedModel:
    """A model on the meta device, in bfloat16: one of `named_shapes`, or a model as for `skeleton`.

    Raises:
        ModelError: It is neither.
    """
    settings = named_shapes().get(name)
    if settings is None:
        return nn.Module.to(skeleton(name), torch.bfloat16)
    return unfilled(AutoConfig.for_model(**settings))


def unfilled(config: Any) -> PreTrainedModel:
    """A config's model on the meta device, in bfloat16."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    return cast(PreTrainedModel, model.eval())
