"""A batch that does not fit into memory is measured in parts of its sequences from then on, and the user is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from lit_prune.errors import MeasureError
from lit_prune.measure.batch_pass import BatchPass
from lit_prune.measure.portion import Portion
from lit_prune.plan import Candidate
from lit_prune.surgery import is_sharded

Found = TypeVar("Found")
Measured = list[tuple[list[float], int]]
"""For every candidate the figures of the sequences and the decoder blocks that ran."""


def measured(batch: BatchPass, candidates: Sequence[Candidate]) -> Measured:
    """Measure a batch without each candidate; without any, as the model is.

    Where memory is too small, candidates go one at a time, then the sequences in halves, for the rest of the run. The
    blocks that ran are those of the first part, as if nothing had happened.
    """

    def work(part: BatchPass) -> Measured:
        states = dict(part.portion.trace.states)
        try:
            return part.measure_together(candidates) if candidates else [part.measure(None)]
        except RuntimeError:
            part.portion.trace.states = states
            raise

    if len(candidates) <= 1:
        return _joined(fitting(batch, work))
    batch.fit()
    if len(candidates) <= batch.states.forks:
        try:
            return _joined([work(leaf) for leaf in batch.leaves])
        except RuntimeError as error:
            if not is_out_of_memory(error) or is_sharded(batch.portion.objective.model):
                raise
        batch.states.forks = 1
        _tell("candidates that share a pass do not fit into memory: they are measured one at a time from here on")
    return [found for candidate in candidates for found in measured(batch, [candidate])]


def fitting(batch: BatchPass, work: Callable[[BatchPass], Found]) -> list[Found]:
    """Work on a batch, or one after the other on parts of it that fit into memory; a sequence alone must."""
    batch.fit()
    if batch.parts:
        return [found for part in batch.parts for found in fitting(part, work)]
    try:
        return [work(batch)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _require_divisible(batch.portion, error)
    # Behind the `except`, what the failed pass held is gone.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    number = batch.portion.num_sequences
    batch.states.sequences = -(-number // 2)
    _tell(
        f"a batch of {number} sequences does not fit into memory: {batch.states.sequences} at a time from here on, "
        "which gives the same figures"
    )
    return fitting(batch, work)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had no more memory to give."""
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def _joined(parts: Sequence[Measured]) -> Measured:
    columns = zip(*parts, strict=True)
    return [([figure for figures, _ in column for figure in figures], column[0][1]) for column in columns]


def _require_divisible(portion: Portion, error: RuntimeError) -> None:
    length = portion.inputs["input_ids"].shape[1]
    batch = f"a batch of {portion.num_sequences} sequences of {length} tokens does not fit into memory, and"
    if is_sharded(portion.objective.model):
        raise MeasureError(
            f"{batch} where processes share weights none can split its own: use smaller batches. {error}"
        ) from error
    if not portion.divisible:
        raise MeasureError(
            f"{batch} among its inputs ({', '.join(sorted(portion.inputs))}) are some of which lit-prune cannot tell "
            f"what belongs to which sequence: use smaller batches. {error}"
        ) from error
    if portion.num_sequences == 1:
        raise MeasureError(
            f"one sequence of {length} tokens does not fit into memory beside the model: use a shorter window, "
            f"offload, a smaller dtype or a device_map. {error}"
        ) from error


def _tell(message: str) -> None:
    warnings.warn(message, stacklevel=2)
