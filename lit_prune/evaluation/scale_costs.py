"""Seconds of one block and of the head of a shape, measured; bytes and FLOPs of a search, by arithmetic."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import MeasureError
from lit_prune.evaluation.scale import Work, unfilled
from lit_prune.measure import labels_of
from lit_prune.measure.losses import sequence_losses
from lit_prune.measure.states import STATES_SHARE

ROOM = 1.1
"""Of the bytes of the weights: what a measurement wants free."""
MEMINFO = Path("/proc/meminfo")


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


@dataclass(frozen=True)
class Timing:
    """Seconds that were measured.

    Attributes:
        block: One block.
        head: Final norm, head and the loss.
        tokens: That both ran on.
    """

    block: float
    head: float
    tokens: int

    def seconds(self, work: Work, tokens: int) -> float:
        """Of a search whose batches have so many tokens: linear in tokens.

        Example:
            >>> work = Work("lazy", 1, block_evaluations=5, head_evaluations=3, dense_passes=0.5)
            >>> Timing(block=2.0, head=1.0, tokens=4).seconds(work, tokens=8)
            26.0
        """
        return (work.block_evaluations * self.block + work.head_evaluations * self.head) * tokens / self.tokens


def measure_block(
    model: PreTrainedModel, *, batch_size: int, window: int, device: str, dtype: torch.dtype, repeats: int = 5
) -> Timing:
    """Time one block and the head of a shape, with random weights.

    Args:
        model: Of the shape; only its config is looked at.
        batch_size: Sequences.
        window: Tokens in each.
        device: Where.
        dtype: Of the weights.
        repeats: Passes that count, after one that does not; the median is taken.

    Raises:
        MeasureError: The CPU's memory has no room for a block, the embeddings and the head.
    """
    network = _filled(_one_block(model).to(dtype), device)
    ids = torch.randint(0, Sizes.of(network).vocab, (batch_size, window), device=device)
    found = [_once(network, ids) for _ in range(repeats + 1)][1:]
    block, head = (statistics.median(each) for each in zip(*found, strict=True))
    return Timing(block, head, ids.numel())


def _one_block(model: PreTrainedModel) -> Any:
    config = copy.deepcopy(model.config)
    decoder = config.get_text_config(decoder=True)
    decoder.num_hidden_layers = 1
    if getattr(decoder, "layer_types", None):
        decoder.layer_types = decoder.layer_types[:1]
    # The embedding is a look-up: sharing it with the head changes no time, and spares memory.
    config.tie_word_embeddings = decoder.tie_word_embeddings = True
    return unfilled(config)


def _filled(model: PreTrainedModel, device: str) -> PreTrainedModel:
    wanted = sum(each.nbytes for each in model.parameters())
    free = free_memory() if device == "cpu" else None
    if free is not None and ROOM * wanted > free:
        raise MeasureError(f"one block and the head take {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    filled: Any = model.to_empty(device=device)
    filled.tie_weights()
    noise = torch.randn(2**16, device=device) / math.sqrt(Sizes.of(filled).hidden)
    with torch.no_grad():
        for each in filled.parameters():
            # Drawing billions of numbers would take longer than the measurement.
            flat = each.view(-1)
            for part in flat.split(len(noise)):
                part.copy_(noise[: len(part)])
        for each in filled.buffers():
            each.fill_(1)
    return cast(PreTrainedModel, filled)


def _once(model: PreTrainedModel, ids: Tensor) -> tuple[float, float]:
    readings: list[float] = []

    def note(*_: object) -> None:
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)
        readings.append(time.perf_counter())

    blocks: Any = model.get_submodule(find_sublayers(model).blocks_path)
    handles = [blocks[0].register_forward_pre_hook(note), blocks[0].register_forward_hook(note)]
    try:
        with torch.no_grad():
            sequence_losses(model(input_ids=ids, use_cache=False).logits, labels_of({"input_ids": ids}))
            note()
    finally:
        for handle in handles:
            handle.remove()
    before, between, after = readings
    return between - before, after - between


def free_memory() -> int | None:
    """Bytes that the CPU's memory has left; None where the system does not tell."""
    if not MEMINFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def filled_model(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A whole model of the shape with random weights, drawn as transformers does."""
    factory: Any = type(model)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.device(device):
        torch.manual_seed(0)
        return cast(PreTrainedModel, factory._from_config(copy.deepcopy(model.config), dtype=dtype).eval())


def blank_batches(num_batches: int, batch_size: int, window: int) -> Sequence[Mapping[str, Tensor]]:
    """Batches of the right sizes for a search that is simulated."""
    return [{"input_ids": torch.zeros(batch_size, window, dtype=torch.long)} for _ in range(num_batches)]
