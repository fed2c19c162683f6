"""What a search will take on a model, by arithmetic on its shape alone: passes, FLOPs, bytes read, bytes in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import LitPruneError
from lit_prune.measure.states import STATES_SHARE
from lit_prune.pruning import Pruner
from lit_prune.searches import Budget

MODES: Mapping[str, tuple[str, bool]] = {
    "progressive": ("progressive", False),
    "lazy": ("lazy", False),
    "one_shot": ("one_shot", False),
    "progressive, stream": ("progressive", True),
    "one_shot, stream": ("one_shot", True),
}
"""The search, and whether one pass scores all candidates (block_influence, cosine, angular, relative_norm)."""


@dataclass(frozen=True)
class Work:
    """What a search runs.

    Attributes:
        mode: One of `MODES`.
        num_removed: Candidates that it takes out.
        block_evaluations: Decoder blocks that run, times batches.
        head_evaluations: Passes through final norm and head, times batches.
        dense_passes: The block evaluations in full passes over the calibration set.
    """

    mode: str
    num_removed: int
    block_evaluations: int
    head_evaluations: int
    dense_passes: float


def require_mode(name: str) -> None:
    """Refuse what is none of `MODES`.

    Raises:
        LitPruneError: It is none.
    """
    if name not in MODES:
        raise LitPruneError(f"unknown mode {name!r}; expected one of {', '.join(MODES)}")


def estimated_work(model: Any, mode: str, *, amount: float, num_batches: int) -> Work:
    """Estimate what a search runs, before it is known which sublayers go.

    A candidate is scored by the blocks behind it, half of all on average; every round has a full pass as well. Lazy
    search scores all candidates once, and two again for every removal (none to five were seen). Scores by the share of
    parameters, such as NRI, take a sublayer with a chance that grows with its size; those of one pass do not.

    Args:
        model: On any device, the meta device too; nothing in it runs.
        mode: One of `MODES`.
        amount: Share of the parameters to remove.
        num_batches: Batches of the calibration set.

    Raises:
        LitPruneError: The mode is unknown, or the amount cannot be reached.
    """
    require_mode(mode)
    search, in_one_pass = MODES[mode]
    budget = Budget(amount, find_sublayers(model).num_parameters)
    Pruner(model).require_reachable(budget)
    anatomy = find_sublayers(model)
    sizes = [sublayer.num_parameters for sublayer in anatomy.sublayers]
    typical = sum(sizes) / len(sizes) if in_one_pass else sum(size * size for size in sizes) / sum(sizes)
    num_removed = min(math.ceil(budget.target / typical), len(sizes))
    passes = num_removed if search == "progressive" else 1
    scored = {
        "progressive": sum(len(sizes) - number for number in range(num_removed)),
        "lazy": len(sizes) + 2 * num_removed,
        "one_shot": len(sizes),
    }[search]
    length = len(anatomy.blocks)
    if in_one_pass:
        blocks, heads = passes * length, passes
    else:
        blocks, heads = passes * length + scored * (length + 1) // 2, scored + 1
    return Work(mode, num_removed, blocks * num_batches, heads * num_batches, blocks / length)


@dataclass(frozen=True)
class Sizes:
    """Of a shape, from its structure.

    Attributes:
        num_blocks: Decoder blocks.
        hidden: Width of the residual stream.
        vocab: Rows of the head.
        block_parameters: Of one block.
        parameters: Of the model.
        itemsize: Bytes of a weight and of a number in a state.
    """

    num_blocks: int
    hidden: int
    vocab: int
    block_parameters: int
    parameters: int
    itemsize: int = 2

    @classmethod
    def of(cls, model: Any) -> Sizes:
        """Of a model on any device."""
        anatomy = find_sublayers(model)
        blocks = model.get_submodule(anatomy.blocks_path)
        block = sum(each.numel() for each in blocks[0].parameters())
        head = model.get_output_embeddings()
        return cls(
            len(anatomy.blocks),
            anatomy.facts().hidden_size,
            head.weight.shape[0],
            block,
            anatomy.num_parameters,
            model.dtype.itemsize,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a search is at work.

    Attributes:
        weights: Its part of them; with more than one device, and the weights of two whole blocks that are gathered.
        states: What the blocks put out for its sequences of a batch.
        kept: States that are kept from round to round, at most a tenth of its weights.
        logits: Of its sequences of a batch.
    """

    weights: float
    states: float
    kept: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.states + self.kept + self.logits


def memory_of(sizes: Sizes, *, batch_size: int, window: int, num_batches: int, devices: int = 1) -> Memory:
    """What a search takes on each of several devices, by FSDP2 (arithmetic).

    Args:
        sizes: Of the model.
        batch_size: Sequences in a batch; every device has its share, and one at least.
        window: Tokens in a sequence.
        num_batches: Of the calibration set.
        devices: That share weights and sequences.

    Example:
        >>> sizes = Sizes(num_blocks=10, hidden=8, vocab=100, block_parameters=1000, parameters=12_000)
        >>> memory_of(sizes, batch_size=2, window=16, num_batches=1)
        Memory(weights=24000.0, states=5120, kept=2400.0, logits=6400)
        >>> memory_of(sizes, batch_size=2, window=16, num_batches=1, devices=2)
        Memory(weights=16000.0, states=2560, kept=1200.0, logits=3200)
    """
    tokens = math.ceil(batch_size / devices) * window
    own = sizes.itemsize * sizes.parameters / devices
    gathered = 2 * sizes.itemsize * sizes.block_parameters if devices > 1 else 0
    states = sizes.num_blocks * tokens * sizes.hidden * sizes.itemsize
    return Memory(
        own + gathered, states, min(STATES_SHARE * own, states * num_batches), tokens * sizes.vocab * sizes.itemsize
    )


@dataclass(frozen=True)
class Load:
    """What a search asks of a device, whatever that is.

    Attributes:
        flops: Two for every weight and token of blocks and head; attention between tokens is left out.
        bytes_read: Weights, once for every block and head that runs on a batch.
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


def load_of(sizes: Sizes, work: Work, tokens: int) -> Load:
    """The arithmetic of a search.

    Args:
        sizes: Of the model.
        work: What runs.
        tokens: In a batch.

    Example:
        >>> sizes = Sizes(num_blocks=10, hidden=8, vocab=100, block_parameters=1000, parameters=12_000)
        >>> load_of(sizes, Work("lazy", 1, block_evaluations=5, head_evaluations=3, dense_passes=0.5), tokens=4)
        Load(flops=59200, bytes_read=14800)
    """
    weights = work.block_evaluations * sizes.block_parameters + work.head_evaluations * sizes.hidden * sizes.vocab
    return Load(2 * weights * tokens, sizes.itemsize * weights)
