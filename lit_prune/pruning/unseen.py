"""What removals do to a model on text that none of them was decided by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_prune.loading.processes import Processes
from lit_prune.measure import Losses, WhatIf, shares_of
from lit_prune.plan import error_of_ratio

Batches = Sequence[Mapping[str, Any]]


class Unseen:
    """Texts that a model is measured on twice: before anything is removed, when this is made, and at the end.

    Args:
        texts: Batches by the name of the text.
        measure: Makes the measure of the model over batches.
        processes: The processes that share the sequences of every batch.
    """

    def __init__(self, texts: Mapping[str, Batches], measure: Callable[..., WhatIf], processes: Processes) -> None:
        self._processes, self._measure = processes, measure
        # Read once by the measure, as calibration batches are.
        self._shares = {name: shares_of(measure(batches).batches, processes) for name, batches in texts.items()}
        self._before = self._losses()

    def _losses(self) -> dict[str, Losses]:
        made = {name: self._measure(own, processes=self._processes) for name, own in self._shares.items()}
        return {name: what_if.losses([]) for name, what_if in made.items()}

    def risen(self) -> dict[str, dict[str, Any]]:
        """What is to stand in the plan of every text: see `PrunePlan.unseen`."""
        return {name: self._row(self._before[name], after) for name, after in self._losses().items()}

    def _row(self, before: Losses, after: Losses) -> dict[str, Any]:
        rise, counted = after.base - before.base, after.tokens > 0
        rest = (after.base_sequences - before.base_sequences - rise * after.tokens.to(after.base_sequences))[counted]
        squares, number = self._processes.sum(rest.new_tensor([float(rest.square().sum()), len(rest)])).tolist()
        error = error_of_ratio(squares, number, after.num_tokens)
        return {
            "num_windows": int(number),
            "num_tokens": after.num_tokens,
            "nll_before": before.base,
            "nll_after": after.base,
            "error": error if math.isfinite(error) else None,
        }
