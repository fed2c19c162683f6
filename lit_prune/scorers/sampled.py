"""Scores from losses without random sets of candidates: what each is worth beside others, not alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.errors import LitPruneError
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.scorers.base import SCORERS, Scorer


@SCORERS.register("shapley")
@dataclass(frozen=True)
class Shapley(Scorer):
    """The Shapley value of a candidate for the loss, from sampled permutations (Siddiqui et al., arXiv 2407.16286).

    E [loss without it and the candidates before it - loss without the candidates before it], the mean over random
    orders in which all candidates are taken out one by one. In nats; higher is more important; over all
    candidates they sum to the rise of the loss without any of them. The plan's `errors` are standard errors: the
    standard deviation over permutations, divided by the square root of their number.

    For disjoint candidates of any kind; about one pass for each candidate and permutation, less what is carried.

    Args:
        permutations: Number of random orders, 2 or more.
        seed: Decides the orders, together with the number of removals so far.

    Raises:
        LitPruneError: There are fewer than two permutations; or when called candidates overlap, and nothing has run.
    """

    together = True

    permutations: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.permutations < 2:
            raise LitPruneError(f"a standard error needs 2 permutations or more; found {self.permutations}")

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by the losses without every beginning of every permutation."""
        _require_disjoint(candidates)
        orders = [self._order(candidates, number, len(history)) for number in range(self.permutations)]
        beginnings = [[Candidate.together(order[: n + 1]) for n in range(len(order))] for order in orders]
        losses = what_if.losses(list({gone for row in beginnings for gone in row}))
        rises: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
        for order, row in zip(orders, beginnings, strict=True):
            before = losses.base
            for candidate, gone in zip(order, row, strict=True):
                rises[candidate].append(losses.without[gone] - before)
                before = losses.without[gone]
        values = torch.tensor(list(rises.values()), dtype=torch.float64)  # [candidates, permutations]
        errors = values.std(dim=1) / math.sqrt(self.permutations)
        importance = dict(zip(candidates, values.mean(dim=1).tolist(), strict=True))
        return Scores(importance, losses.base, errors=dict(zip(candidates, errors.tolist(), strict=True)))

    def _order(self, candidates: Sequence[Candidate], number: int, num_removals: int) -> list[Candidate]:
        order = sorted(candidates)
        random.Random(f"{self.seed}/{num_removals}/{number}").shuffle(order)
        return order


@SCORERS.register("regression")
@dataclass(frozen=True)
class Regression(Scorer):
    """The coefficient of a candidate in a ridge regression of the loss on random masks (Bonsai, arXiv 2402.05406).

    Each mask takes out a random share of the candidates; loss = loss of the model as it is + sum of b_i over those that
    are out, with least squares plus `ridge` times the sum of squared b_i. In nats of loss; higher is more important.
    Masks are dealt like cards, so that every candidate is out about equally often. Bonsai fits the constant too; with
    masks of one size that would move all b_i alike, so that 0 would no longer mean "changes nothing".

    For disjoint candidates of any kind; about one pass for each mask, less what is carried.

    Args:
        masks: Number of masks, 2 or more.
        drop: Share of the candidates that a mask takes out, above 0 and below 1; one candidate at least.
        ridge: Weight of the penalty, 0 or more.
        seed: Decides the masks, together with the number of removals so far.

    Raises:
        LitPruneError: An option is out of its range; or when called candidates overlap, or there are too few masks for
            so many, and nothing has run.
    """

    together = True

    masks: int = 200
    drop: float = 0.1
    ridge: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.masks < 2:
            raise LitPruneError(f"a regression needs 2 masks or more; found {self.masks}")
        if not 0 < self.drop < 1:
            raise LitPruneError(f"drop is the share that a mask takes out, above 0 and below 1; found {self.drop}")
        if not 0 <= self.ridge < math.inf:
            raise LitPruneError(f"ridge is 0 or more; found {self.ridge}")

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by the losses without every mask."""
        _require_disjoint(candidates)
        ordered = sorted(candidates)
        size = max(1, round(self.drop * len(ordered)))
        if self.masks * size < len(ordered):
            raise LitPruneError(
                f"{self.masks} masks of {size} leave some of {len(ordered)} candidates in every one; "
                f"ask for {math.ceil(len(ordered) / size)} masks at least"
            )
        dealt = self._deal(len(ordered), size, len(history))
        without = [Candidate.together(ordered[place] for place in mask) for mask in dealt]
        losses = what_if.losses(list(set(without)))
        design = torch.tensor([[place in mask for place in range(len(ordered))] for mask in dealt]).double()
        nll = torch.tensor([losses.without[gone] for gone in without], dtype=torch.float64)
        coefficients = ridge_regression(design, nll - losses.base, self.ridge)
        return Scores(dict(zip(ordered, coefficients.tolist(), strict=True)), losses.base)

    def _deal(self, num_candidates: int, size: int, num_removals: int) -> list[list[int]]:
        draw = random.Random(f"{self.seed}/{num_removals}")
        deck: list[int] = []
        masks = []
        for _ in range(self.masks):
            while len(deck) < size:
                deck += draw.sample(range(num_candidates), num_candidates)
            # Where one deck ends and the next begins, a candidate may come twice.
            masks.append(sorted(set(deck[:size])))
            deck = deck[size:]
        return masks


def ridge_regression(design: Tensor, target: Tensor, penalty: float) -> Tensor:
    """The b [columns] that minimises |target - design b|^2 + penalty |b|^2, of a design [rows, columns].

    Example:
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> round(ridge_regression(x, torch.tensor([2.0, 4.0]), 0.0).item(), 4)
        2.0
    """
    columns = design.shape[1]
    # The penalty is as many more rows, which keeps the condition of the problem where normal equations would square it.
    rows = torch.cat([design, math.sqrt(penalty) * torch.eye(columns, dtype=design.dtype)])
    values = torch.cat([target, torch.zeros(columns, dtype=target.dtype)])
    found: Tensor = torch.linalg.lstsq(rows, values[:, None], driver="gelsd").solution
    return found[:, 0]


def _require_disjoint(candidates: Sequence[Candidate]) -> None:
    if len(Candidate.together(candidates).sublayers) < sum(len(candidate.sublayers) for candidate in candidates):
        names = ", ".join(candidate.name for candidate in candidates)
        raise LitPruneError(f"candidates that are taken out together must not overlap; found {names}")
