"""Seconds of one block and of the head of a shape, with random weights."""

from __future__ import annotations

import copy
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import MeasureError
from lit_prune.evaluation import SearchWork, Sizes, unfilled
from lit_prune.measure import labels_of
from lit_prune.measure.losses import sequence_losses

ROOM = 1.1
"""Of the bytes of the weights: what a measurement wants free."""
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Timing:
    """Seconds that were measured.

    Attributes:
        block: One block.
        head: Final norm, head and the loss.
        tokens: Tokens that both ran on.
    """

    block: float
    head: float
    tokens: int

    def seconds(self, work: SearchWork, tokens: int) -> float:
        """Of a search whose batches have so many tokens: linear in tokens.

        Example:
            >>> work = SearchWork("lazy", 1, block_evaluations=5, head_evaluations=3, dense_passes=0.5)
            >>> Timing(block=2.0, head=1.0, tokens=4).seconds(work, tokens=8)
            26.0
        """
        return (work.block_evaluations * self.block + work.head_evaluations * self.head) * tokens / self.tokens


def measure_block(
    model: PreTrainedModel, *, batch_size: int, window: int, device: str, dtype: torch.dtype, repeats: int = 5
) -> Timing:
    """Time one block and the head of a shape, with random weights.

    Args:
        model: A model of the shape; only its config is looked at.
        batch_size: Sequences.
        window: Tokens in a sequence.
        device: Where.
        dtype: Data type of the weights.
        repeats: Passes that count, after one that does not; the median is taken.

    Raises:
        MeasureError: The CPU's memory has no room for a block, the embeddings and the head.
    """
    network = _filled(_one_block(model).to(dtype), device)
    ids = torch.randint(0, Sizes.of(network).vocab, (batch_size, window), device=device)
    found = [_once(network, ids) for _ in range(repeats + 1)][1:]
    block, head = (statistics.median(readings) for readings in zip(*found, strict=True))
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
    wanted = sum(parameter.nbytes for parameter in model.parameters())
    free = free_memory() if device == "cpu" else None
    if free is not None and ROOM * wanted > free:
        raise MeasureError(f"one block and the head take {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    filled: Any = model.to_empty(device=device)
    filled.tie_weights()
    noise = torch.randn(2**16, device=device) / math.sqrt(Sizes.of(filled).hidden)
    with torch.no_grad():
        for parameter in filled.parameters():
            # Drawing billions of numbers would take longer than the measurement.
            flat = parameter.view(-1)
            for part in flat.split(len(noise)):
                part.copy_(noise[: len(part)])
        for buffer in filled.buffers():
            buffer.fill_(1)
    return cast(PreTrainedModel, filled)


def _once(model: PreTrainedModel, ids: Tensor) -> tuple[float, float]:
    readings: list[float] = []

    def note(*_: object) -> None:
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)
        readings.append(time.perf_counter())

    blocks = find_sublayers(model).block_list(model)
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
