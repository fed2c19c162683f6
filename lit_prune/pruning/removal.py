"""One candidate taken out, and made up for where the compensation does that for each removal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from lit_prune.healing import Compensation, correct, wants_dense
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate
from lit_prune.surgery import remove


def take_out(
    what_if: WhatIf, candidate: Candidate, compensation: Compensation | None, optimizers: Sequence[Optimizer] = ()
) -> tuple[int, dict[str, Any]]:
    """Remove a candidate and make up for it; returns the parameters that went, and by sublayer what was corrected."""
    if compensation is None or wants_dense(compensation):
        return remove(what_if.model, candidate.sublayers, optimizers), {}
    freed, corrections = 0, {}
    # One by one, so that each is made up for in the model without those before it.
    for sublayer in candidate.sublayers:
        corrections[str(sublayer)] = correct(compensation, what_if, sublayer)
        freed += remove(what_if.model, [sublayer], optimizers)
        what_if.corrected()
    return freed, corrections
