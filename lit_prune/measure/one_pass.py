"""One-pass statistics: how sublayers and blocks change the residual stream of the model as it is.

Hooks see the stream before and after; what is compared is summed at once, and no state outlives its last use.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_prune.anatomy import PARALLEL_FORMS, POST_NORM, Anatomy, Sublayer, find_sublayers
from lit_prune.errors import MeasureError
from lit_prune.loading.devices import exact_dtype
from lit_prune.measure.batches import IGNORED, input_ids_of, labels_of, model_inputs
from lit_prune.measure.what_if import WhatIf
from lit_prune.plan import Candidate, SublayerId
from lit_prune.surgery import first_tensor, hidden_states

Statistic = Callable[[Tensor, Tensor], Tensor]
"""Takes the stream before and behind a candidate, float32 [..., hidden]; returns a number for each state, [...]."""


@dataclass(frozen=True)
class _Span:
    """The points before and behind a candidate: 2p before the block at position p, 2p + 1 between its sublayers.

    A `branch` is a sublayer behind which no point holds the stream plus its output alone; its `end` is the next point
    that is sure to come later.
    """

    begin: int
    end: int
    branch: Sublayer | None = None


def stream_means(
    what_if: WhatIf, candidates: Sequence[Candidate], statistic: Statistic, *, last_token: bool = False
) -> dict[Candidate, float]:
    """The mean of a statistic of the residual stream before and after each candidate, from one pass over the batches.

    Before a sublayer is what it (or the norm ahead of it) reads from the stream; behind it is that plus what it adds.
    With parallel sublayers both read the input of the block. Padding does not count, nor a sequence without any label:
    a process that shares a batch may run one for nothing.

    Args:
        what_if: The model and batches.
        candidates: Single sublayers, whole blocks, or runs of neighbouring blocks.
        statistic: Compares the two for every token.
        last_token: Whether they are compared at the last token of each sequence alone, and the mean is over sequences.

    Raises:
        MeasureError: A candidate is none of these (nothing has run then), or a mean is NaN or infinite.
    """
    anatomy = find_sublayers(what_if.model)
    spans = {candidate: _span(anatomy, candidate) for candidate in candidates}
    recorder = _Recorder(spans, statistic, last_token)
    count = 0
    with what_if.running(), recorder.attached(what_if.model, anatomy):
        for batch in what_if.passes():
            mask = counted_positions(batch)
            count += int(mask.any(dim=1).sum() if last_token else mask.sum())
            recorder.begin(mask)
            what_if.model(**model_inputs(what_if.model, batch), use_cache=False)
    sums = torch.stack([*recorder.sums.values(), torch.tensor(count).to(next(iter(recorder.sums.values())))])
    *totals, number = what_if.processes.sum(sums).tolist()
    means = {candidate: total / number for candidate, total in zip(recorder.sums, totals, strict=True)}
    if wrong := [candidate.name for candidate, mean in means.items() if not math.isfinite(mean)]:
        raise MeasureError(f"the hidden states around {wrong[0]} are not finite: check the model's weights and dtype")
    return {candidate: means[candidate] for candidate in candidates}


def is_run_of_blocks(anatomy: Anatomy, candidate: Candidate) -> bool:
    """Whether all that is left of one block, or of several neighbouring ones, would go."""
    positions = _positions(anatomy, candidate)
    inside = {anatomy.blocks[number] for number in range(min(positions), max(positions) + 1)}
    return {present.id for present in anatomy.sublayers if present.id.block in inside} == set(candidate.sublayers)


def _positions(anatomy: Anatomy, candidate: Candidate) -> list[int]:
    return [anatomy.position(sublayer.block) for sublayer in candidate.sublayers]


def _span(anatomy: Anatomy, candidate: Candidate) -> _Span:
    positions = _positions(anatomy, candidate)
    if len(candidate.sublayers) == 1:
        return _sublayer_span(anatomy, anatomy[candidate.sublayers[0]], 2 * positions[0])
    if is_run_of_blocks(anatomy, candidate):
        return _Span(2 * min(positions), 2 * max(positions) + 2)
    raise MeasureError(
        f"{candidate.name} is neither one sublayer nor a run of whole blocks, so the residual stream has no state "
        "right before and right behind it"
    )


def _sublayer_span(anatomy: Anatomy, sublayer: Sublayer, start: int) -> _Span:
    second = sublayer.id.kind == "mlp" and sublayer.form not in PARALLEL_FORMS
    begin = start + second
    if sublayer.residual is not None or sublayer.form in (POST_NORM, *PARALLEL_FORMS):
        return _Span(begin, start + 2, branch=sublayer)
    alone = SublayerId(sublayer.id.block, "mlp") not in anatomy
    return _Span(begin, start + 2 if second or alone else start + 1)


class _Recorder:
    """Sums of a statistic by candidate, fed by hooks."""

    def __init__(self, spans: Mapping[Candidate, _Span], statistic: Statistic, last_token: bool) -> None:
        self.sums: dict[Candidate, Tensor] = {}
        self._spans = spans
        self._statistic = statistic
        self._last_token = last_token
        self._ending: dict[int, list[Candidate]] = defaultdict(list)
        self._last_use: dict[int, int] = {}
        for candidate, span in spans.items():
            if span.branch is None:
                self._ending[span.end].append(candidate)
            self._last_use[span.begin] = max(span.end, self._last_use.get(span.begin, 0))

    def begin(self, mask: Tensor) -> None:
        """Get ready for a batch with a mask of real tokens, [batch, seq]."""
        self._states: dict[int, Tensor] = {}
        self._reached = -1
        self._mask = mask

    @contextmanager
    def attached(self, model: Any, anatomy: Anatomy) -> Iterator[None]:
        """Hooks on the model, in a `with` block."""
        blocks = anatomy.block_list(model)
        points = {*self._last_use, *self._ending}
        with ExitStack() as hooks:
            for position, block in enumerate(blocks):
                if 2 * position in points:
                    hooks.enter_context(self._entering(block, 2 * position))
                mlp = SublayerId(anatomy.blocks[position], "mlp")
                for part in anatomy[mlp].parts if 2 * position + 1 in points else ():
                    hooks.enter_context(self._entering(model.get_submodule(part.path), 2 * position + 1))
            if (end := 2 * len(blocks)) in points:
                last = blocks[-1].register_forward_hook(lambda _, __, output: self._at(end, first_tensor(output)))
                hooks.enter_context(last)
            for candidate, span in self._spans.items():
                if span.branch is not None:
                    module = model.get_submodule(span.branch.output)
                    hook = self._leaving(candidate, span.begin, span.branch)
                    hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
            yield

    def _entering(self, module: nn.Module, point: int) -> RemovableHandle:
        def hook(_: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
            # Of the several modules of a sublayer, the first that runs reads the stream.
            if point > self._reached:
                self._at(point, hidden_states(args, kwargs))

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _leaving(self, candidate: Candidate, begin: int, branch: Sublayer) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            after = self._prepared(first_tensor(output))
            if branch.residual is None:
                before = self._states[begin]
                after = before + after
            else:
                before = self._prepared(branch.residual.pick(args[1:], kwargs))
            self._add(candidate, before, after)

        return hook

    def _at(self, point: int, hidden: Tensor) -> None:
        state, self._reached = self._prepared(hidden), point
        for candidate in self._ending.get(point, ()):
            self._add(candidate, self._states[self._spans[candidate].begin], state)
        self._states = {before: kept for before, kept in self._states.items() if self._last_use[before] > point}
        if point in self._last_use:
            self._states[point] = state

    def _prepared(self, hidden: Tensor) -> Tensor:
        """A float32 copy, as some blocks add in place: [batch, seq, hidden], or [batch, hidden] of the last token."""
        mask = self._mask
        hidden = hidden.reshape(*mask.shape, -1)
        if self._last_token:
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
            hidden = hidden[torch.arange(len(mask), device=hidden.device), last]
        return hidden.to(torch.float32, copy=True)

    def _add(self, candidate: Candidate, before: Tensor, after: Tensor) -> None:
        value = self._statistic(before, after)
        value = value.where(self._mask.any(dim=1) if self._last_token else self._mask, 0)
        total = value.sum(dtype=exact_dtype(value.device))
        self.sums[candidate] = self.sums.get(candidate, torch.zeros_like(total)) + total


def counted_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """Which tokens count, bool [batch, seq]: all but padding, and none of a sequence without any label."""
    ids, mask, labels = input_ids_of(batch), batch.get("attention_mask"), batch.get("labels")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.shape != ids.shape else mask.bool()
    if labels is None or labels.shape != ids.shape:
        return real  # labels of whole sequences
    return real & (labels_of(batch) != IGNORED).any(dim=1, keepdim=True)
