"""Scores by the output distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_prune.measure import Divergence, WhatIf
from lit_prune.plan import PruneStep
from lit_prune.plan.prune_plan import Candidate, Scores
from lit_prune.scorers.base import SCORERS, Scorer


@SCORERS.register("kl")
@dataclass(frozen=True)
class OutputDivergence(Scorer):
    """KL(p, p_i): the dense model's next-token distribution against that without a candidate and all that went before.

    FinerCut (arXiv 2405.18218) and EvoPress (2410.14649). In nats a predicted token; 0 is the same distribution. The
    dense model is the one before the first removal; within training, the one before the first removal of the epoch. For
    sublayers, blocks and any set; one pass per candidate and round, less what is carried, and the dense model's states
    behind its last block are kept for every batch.
    """

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one what-if divergence per candidate."""
        losses = what_if.beside("kl", Divergence).losses(candidates)
        return Scores(dict(losses.without), zero=losses.base)
