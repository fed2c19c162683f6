"""A batch that memory has no room for is measured in parts of its sequences, from then on, and said aloud."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from lit_prune.errors import MeasureError
from lit_prune.plan.prune_plan import Candidate
from lit_prune.surgery import is_sharded

if TYPE_CHECKING:
    from lit_prune.measure.batch_pass import BatchPass

Found = TypeVar("Found")
Measured = list[tuple[list[float], int]]
"""Of every candidate, figures of the sequences and decoder blocks that ran."""


def measured(batch: BatchPass, candidates: Sequence[Candidate]) -> Measured:
    """Measure a batch without each candidate; without any, as the model is.

    Where memory is too small, candidates go one at a time, then the sequences in halves, for the rest of the run. Work
    is counted as if nothing had happened.

    Raises:
        MeasureError: One sequence alone does not fit.
    """
    owner = batch.owner
    batch.fit()
    counts = owner.counts

    def work(part: BatchPass) -> Measured:
        before, states = owner.counts, dict(part.trace.states)
        try:
            found = part.measure_together(candidates) if candidates else [part.measure(None)]
        except RuntimeError:
            owner.counts, part.trace.states = before, states
            raise
        if part.rows.start != batch.rows.start:
            owner.counts = before  # a block counts once for all sequences of a batch
        return found

    if len(candidates) <= 1:
        return _joined(fitting(batch, work))
    if len(candidates) <= owner.forks:
        try:
            return _joined([work(each) for each in batch.leaves])
        except RuntimeError as error:
            if not is_out_of_memory(error) or is_sharded(batch.owner.model):
                raise
        owner.forks, owner.counts = 1, counts
        _tell("candidates that share a pass do not fit into memory: they are measured one at a time from here on")
    return [each for one in candidates for each in measured(batch, [one])]


def fitting(batch: BatchPass, work: Callable[[BatchPass], Found]) -> list[Found]:
    """Work on a batch, or one after the other on parts of it that fit into memory.

    Raises:
        MeasureError: One sequence alone does not fit.
    """
    batch.fit()
    if batch.parts:
        return [found for each in batch.parts for found in fitting(each, work)]
    try:
        return [work(batch)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _require_divisible(batch, error)
    # Behind the `except`, what the failed pass held is gone.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    batch.owner.most_sequences = -(-batch.num_sequences // 2)
    _tell(
        f"a batch of {batch.num_sequences} sequences does not fit into memory: {batch.owner.most_sequences} at a time "
        "from here on, which gives the same figures"
    )
    return fitting(batch, work)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had no more memory to give."""
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def _joined(parts: Sequence[Measured]) -> Measured:
    columns = zip(*parts, strict=True)
    return [([figure for figures, _ in column for figure in figures], column[0][1]) for column in columns]


def _require_divisible(batch: BatchPass, error: RuntimeError) -> None:
    length = batch.inputs["input_ids"].shape[1]
    if is_sharded(batch.owner.model):
        raise MeasureError(
            f"a batch of {batch.num_sequences} sequences of {length} tokens does not fit into memory, and where "
            f"processes share weights none can split its own: use smaller batches. {error}"
        ) from error
    if not batch.divisible:
        raise MeasureError(
            f"a batch of {batch.num_sequences} sequences of {length} tokens does not fit into memory, and among its "
            f"inputs ({', '.join(sorted(batch.inputs))}) are some of which lit-prune cannot tell what belongs to which "
            f"sequence: use smaller batches. {error}"
        ) from error
    if batch.num_sequences == 1:
        raise MeasureError(
            f"one sequence of {length} tokens does not fit into memory beside the model: use a shorter window, "
            f"offload, a smaller dtype or a device_map. {error}"
        ) from error


def _tell(message: str) -> None:
    warnings.warn(message, stacklevel=2)
