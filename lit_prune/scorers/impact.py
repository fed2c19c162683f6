"""Scores by what the model would say without a candidate: `nri` (the default), `ri`, `ppl`, `kl` and `acceptance`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lit_prune.costs import NORMALISERS, candidate_shares
from lit_prune.errors import LitPruneError
from lit_prune.measure import AGREEMENTS, Divergence, WhatIf
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.scorers.base import SCORERS, Scorer

BUDGET = "budget"
KNOWN = (*NORMALISERS, BUDGET)


@SCORERS.register("nri")
@dataclass(frozen=True)
class NormalisedRelativeImpact(Scorer):
    """NRI: how much perplexity rises without a candidate, divided by the share of the model that it costs.

    RI_i = (PPL_i - PPL) / PPL and NRI_i = RI_i / P_i ("Rethinking the Impact of Heterogeneous Sublayers in
    Transformers"): PPL is the perplexity of the model, PPL_i that without candidate i, P_i the share of the whole model
    that it costs. Where removal helps (RI <= 0), dividing by P_i would favour the smaller candidate; there the score is
    -P_i, so that the larger saving goes first.

    Args:
        baseline: The model whose perplexity is PPL: the `current` one, or the `original` (before the first removal).
        impact: `relative` perplexity, or its logarithm (`log`: the difference of the mean token losses in nats).
        normaliser: What a candidate costs: `parameters`; `active_parameters` (of experts, those that a token goes
            through); `flops` or `kv_cache` of a token; `budget`, what the search's budget is a share of, such as
            seconds that are measured (`of="latency"`); or `none`.
    """

    baseline: Literal["current", "original"] = "current"
    impact: Literal["relative", "log"] = "relative"
    normaliser: Literal["parameters", "active_parameters", "flops", "kv_cache", "budget", "none"] = "parameters"

    def __post_init__(self) -> None:
        choices = {"baseline": ("current", "original"), "impact": ("relative", "log"), "normaliser": KNOWN}
        _require_known(self, choices)

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one what-if loss per candidate."""
        losses = what_if.losses(candidates)
        shares = _shares(what_if, candidates, self.normaliser)
        reference = losses.base
        if self.baseline == "original" and history and history[0].nll_before is not None:
            reference = history[0].nll_before
        importance = {
            candidate: self._score(nll - reference, shares[candidate]) for candidate, nll in losses.without.items()
        }
        slopes = {gone: self._slope(nll - reference, shares[gone]) for gone, nll in losses.without.items()}
        margins = losses.margins(importance, slopes, what_if.processes, of_rise=reference == losses.base)
        return Scores(importance, losses.base, losses.without, margins=margins)

    def _slope(self, difference: float, share: float) -> float:
        slope = _relative_rise(difference) + 1 if self.impact == "relative" else 1.0
        return slope / share if self.normaliser != "none" and share else slope

    def _score(self, difference: float, share: float) -> float:
        impact = _relative_rise(difference) if self.impact == "relative" else difference
        return impact if self.normaliser == "none" else _per_share(impact, share)


@SCORERS.register("ri")
def relative_impact(
    baseline: Literal["current", "original"] = "current", impact: Literal["relative", "log"] = "relative"
) -> NormalisedRelativeImpact:
    """RI: the relative rise of perplexity alone, NRI without its normaliser."""
    return NormalisedRelativeImpact(baseline, impact, normaliser="none")


@SCORERS.register("ppl")
@dataclass(frozen=True)
class Perplexity(Scorer):
    """Perplexity without the candidate (BlockPruner, arXiv 2406.10594; Shortened LLaMA, 2402.02834)."""

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one what-if loss per candidate."""
        losses = what_if.losses(candidates)
        importance = {candidate: _relative_rise(nll) + 1 for candidate, nll in losses.without.items()}
        margins = losses.margins(importance, importance, what_if.processes, of_rise=False)
        return Scores(importance, losses.base, losses.without, zero=_relative_rise(losses.base) + 1, margins=margins)


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


@SCORERS.register("acceptance")
@dataclass(frozen=True)
class Acceptance(Scorer):
    """How many fewer tokens the dense model would accept from a draft without a candidate, by the time that it saves.

    For drafts of speculative decoding (see `lit_prune.speculative`). The acceptance is measured on the calibration text
    beside the dense model, the one before the first removal, as for `kl`; the score is how much it falls below that of
    the model as it is, divided by the share that a candidate costs. Where it does not fall, the larger saving goes
    first, as for NRI. For any candidate; one pass for each and round, less what is carried.

    Args:
        agreement: A token is accepted where it is the likeliest one of both (`greedy`), or with the chance that
            `sampling` gives it: the sum of min(p, q) (Leviathan et al. 2023, arXiv 2211.17192).
        normaliser: What a candidate costs, as for `nri`. The step of a draft waits for the weights that it reads, which
            are the `active_parameters`; `budget` with `of="latency"` goes by measured seconds.
    """

    agreement: Literal["greedy", "sampling"] = "greedy"
    normaliser: Literal["parameters", "active_parameters", "flops", "kv_cache", "budget", "none"] = "active_parameters"

    def __post_init__(self) -> None:
        _require_known(self, {"agreement": tuple(AGREEMENTS), "normaliser": KNOWN})

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one what-if acceptance per candidate."""
        figure = partial(Divergence, AGREEMENTS[self.agreement])
        refused = what_if.beside(f"acceptance {self.agreement}", figure).losses(candidates)
        shares = _shares(what_if, candidates, self.normaliser)
        falls = {candidate: share - refused.base for candidate, share in refused.without.items()}
        if self.normaliser == "none":
            return Scores(falls)
        return Scores({candidate: _per_share(fall, shares[candidate]) for candidate, fall in falls.items()})


def _shares(what_if: WhatIf, candidates: Sequence[Candidate], normaliser: str) -> Mapping[Candidate, float]:
    """The share of the model's cost that goes with each candidate."""
    if normaliser != BUDGET:
        return candidate_shares(what_if.model, candidates, normaliser, num_positions=what_if.num_positions)
    if what_if.shares is None:
        raise LitPruneError("the normaliser `budget` is for a search that has one; take parameters or flops")
    return what_if.shares(candidates)


def _require_known(scorer: Scorer, choices: Mapping[str, Sequence[str]]) -> None:
    for name, known in choices.items():
        if getattr(scorer, name) not in known:
            raise LitPruneError(f"{name} must be one of {', '.join(known)}; found {getattr(scorer, name)!r}")


def _per_share(loss: float, share: float) -> float:
    """A loss by what is saved; where nothing is lost, the larger saving is the lower."""
    if loss <= 0:
        return -share
    return loss / share if share else math.inf


def _relative_rise(difference: float) -> float:
    """`exp(difference) - 1`, exact for small differences and infinite where a float cannot hold it."""
    return math.expm1(difference) if difference < 700 else math.inf
