"""The reference: every loss by full passes of its own, nothing carried, nothing kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_prune.anatomy import Anatomy
from lit_prune.measure.batches import on_device
from lit_prune.measure.what_if import WhatIf
from lit_prune.plan.prune_plan import Candidate
from lit_prune.surgery import mute


class NaiveWhatIf(WhatIf):
    """What the field's searches do, for comparison: the same losses as `WhatIf`, one full pass for each."""

    def _sweep(self, anatomy: Anatomy, ordered: Sequence[Candidate], used: Sequence[int]) -> list[Tensor]:
        asked = [(), *(each.sublayers for each in ordered)]
        rows = []
        for index in used:
            batch = on_device(self.batches[index], self.model.device)
            sums = []
            for number, sublayers in enumerate(asked):
                self._progress(index * len(asked) + number, len(used) * len(asked), ordered[number - 1].name)
                with mute(self.model, sublayers, anatomy=anatomy):
                    logits = self.objective.logits(batch)
                sums.append(self.objective.of_logits(logits, batch))
                self.num_block_evaluations += len(anatomy.blocks)
                self.num_head_evaluations += 1
            rows.append(torch.stack(sums))
        return rows
