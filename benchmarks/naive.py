"""The reference: every loss by a full pass of its own, nothing carried, nothing kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_prune.measure.batches import on_device
from lit_prune.measure.what_if import Progress, WhatIf


class NaiveWhatIf(WhatIf):
    """What the field's searches do, for comparison: the same losses as `WhatIf`, one full pass for each.

    Args:
        model: A causal language model, as for `WhatIf`.
        batches: The calibration batches.
        progress: What is told of every loss.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Mapping[str, Any]], *, progress: Progress | None = None
    ) -> None:
        super().__init__(model, batches, progress=progress, by_full_pass=self._loss_sums)

    def _loss_sums(self, index: int) -> Tensor:
        batch = on_device(self.batches[index], self.model.device)
        return self.objective.of_logits(self.objective.logits(batch), batch)
