"""What would the loss be without this sublayer? Asked for many sublayers over one set of tokens.

The states before the first changed block are carried, not recomputed: the blocks before it pass on a stored state,
so embedding, masks, rotary tables, final norm and head stay the model's own code and no architecture needs a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import find_sublayers, language_model
from lit_prune.errors import DataError, MeasureError
from lit_prune.measure.losses import evaluating, input_ids_of, labels_of, model_inputs, on_device, sequence_losses
from lit_prune.plan import Candidate
from lit_prune.surgery import mute

Progress = Callable[[int, int, str], None]
Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Losses:
    """Losses of the model as it is, and without each candidate, on the same tokens.

    Attributes:
        base: Mean token loss (nats) of the model as it is, over the sequences of all processes.
        without: The same without each candidate.
        base_sequences: Loss sums of this process's sequences, float64 [sequences].
        sequences: The same without each candidate, so that differences are paired.
        num_tokens: Predicted tokens behind `base`, of all processes.
    """

    base: float
    without: Mapping[Candidate, float]
    base_sequences: Tensor
    sequences: Mapping[Candidate, Tensor]
    num_tokens: int


class WhatIf:
    """Measures losses of one model over fixed batches, and counts the work.

    Args:
        model: A causal language model, perhaps wrapped by peft; it may be pruned and trained between measurements.
        batches: Dicts with `input_ids` [batch, seq], perhaps `labels` and `attention_mask`.
        reduce: Sums a tensor over processes; identity for one process.
        autocast: Makes the context in which the model runs, such as a trainer's precision context.
        progress: Called with (blocks done, blocks in all, what is measured).

    Attributes:
        num_block_evaluations: Decoder blocks computed so far, per batch of sequences.

    Raises:
        DataError: There are no batches, one has no `input_ids`, or all labels are masked.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        *,
        reduce: Reduce | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        progress: Progress | None = None,
    ) -> None:
        self.model = language_model(model)
        self.batches = list(batches)
        self.num_block_evaluations = 0
        self._reduce = reduce or (lambda tensor: tensor)
        self._autocast = autocast
        self._progress = progress or (lambda done, total, what: None)
        _require_tokens(self.batches, self._reduce)
        self._require_context()

    @property
    def cost(self) -> float:
        """Work so far in dense forward passes over the batches; embedding and head are not counted apart."""
        return self.num_block_evaluations / (len(self.batches) * len(find_sublayers(self.model).blocks))

    @property
    def num_positions(self) -> int:
        """Length of the longest calibration sequence."""
        return max(input_ids_of(batch).shape[1] for batch in self.batches)

    def losses(self, candidates: Sequence[Candidate]) -> Losses:
        """Measure the model as it is and without each candidate.

        Raises:
            MeasureError: A loss is NaN or infinite; the message names what was out.
        """
        ordered = sorted(candidates)
        with evaluating(self.model), self._autocast():
            sums, tokens = zip(*self._sweep(ordered), strict=True)
        per_sequence = torch.cat(sums, dim=1)  # [1 + candidates, sequences]
        totals = self._reduce(torch.cat([per_sequence.sum(dim=1), torch.cat(tokens).sum()[None].to(per_sequence)]))
        num_tokens = totals[-1]
        means = [_finite(mean, name) for mean, name in zip(
            (totals[:-1] / num_tokens).tolist(), ["nothing", *(each.name for each in ordered)], strict=True
        )]  # fmt: skip
        return Losses(
            base=means[0],
            without=dict(zip(ordered, means[1:], strict=True)),
            base_sequences=per_sequence[0],
            sequences=dict(zip(ordered, per_sequence[1:], strict=True)),
            num_tokens=int(num_tokens),
        )

    def _require_context(self) -> None:
        context = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if context is not None and self.num_positions > context:
            raise DataError(
                f"a calibration sequence has {self.num_positions} tokens, the model's context holds {context}; "
                "use a shorter window"
            )

    def _sweep(self, ordered: Sequence[Candidate]) -> Iterator[tuple[Tensor, Tensor]]:
        """Per batch: loss sums [1 + candidates, batch] and token counts [batch]; one batch's states are held."""
        anatomy = find_sublayers(self.model)
        blocks = list(self.model.get_submodule(anatomy.blocks_path))
        first = {each: anatomy.position(each.block) for each in ordered}
        todo = len(self.batches) * (len(blocks) + sum(len(blocks) - each for each in first.values()))
        done = 0
        for batch in self.batches:
            batch = on_device(batch, self.model.device)
            with _recorded(blocks) as states:
                base, tokens = self._losses_of(batch, len(blocks))
            rows = [base]
            done += len(blocks)
            for candidate in ordered:
                self._progress(done, todo, candidate.name)
                left = len(blocks) - first[candidate]
                with mute(self.model, candidate.sublayers, anatomy=anatomy), _resumed(blocks, states, first[candidate]):
                    rows.append(self._losses_of(batch, left)[0])
                done += left
            self._progress(done, todo, "")
            yield torch.stack(rows), tokens

    def _losses_of(self, batch: Mapping[str, Tensor], num_blocks: int) -> tuple[Tensor, Tensor]:
        self.num_block_evaluations += num_blocks
        logits = self.model(**model_inputs(batch), use_cache=False).logits
        return sequence_losses(logits, labels_of(batch))


@contextmanager
def _recorded(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Collect what each block returns (a tensor, or a tuple with the hidden state first)."""
    states: list[Any] = []
    handles = [block.register_forward_hook(lambda _, __, output: states.append(output)) for block in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _resumed(blocks: Sequence[nn.Module], states: Sequence[Any], first: int) -> Iterator[None]:
    """Compute from block `first` on: the blocks before it return the stored state instead of computing."""
    before = blocks[:first]
    # Others, accelerate for one, put a `forward` on the instance as well; it comes back.
    replaced = [block.__dict__.get("forward") for block in before]
    try:
        for block in before:
            # An attribute of the instance is found before the class's method.
            block.__dict__["forward"] = lambda *args, **kwargs: states[first - 1]
        yield
    finally:
        for block, forward in zip(before, replaced, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward


def _require_tokens(batches: Sequence[Mapping[str, Any]], reduce: Reduce) -> None:
    if not batches:
        raise DataError("there are no calibration batches; give at least one dict with `input_ids` [batch, seq]")
    predicted = torch.stack([(labels_of(batch)[:, 1:] != -100).sum() for batch in batches]).sum()
    if not int(reduce(predicted)):
        raise DataError("all labels of the calibration batches are masked (-100): there is nothing to score")


def _finite(mean: float, name: str) -> float:
    if not torch.isfinite(torch.tensor(mean)):
        raise MeasureError(
            f"the loss without {name} is {mean}: check the model's weights and dtype (float16 overflows; "
            "try bfloat16 or float32) and the calibration batches"
        )
    return mean
