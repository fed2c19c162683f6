"""What sets of candidates are believed to cost, learned from those that were measured; pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lit_prune.plan import Candidate
from lit_prune.searches.order import Floats

REACH = 2
"""The distance in blocks up to which two removals are believed to change what the other costs."""


class Surrogate:
    """A belief about the loss without a set: the sum of what its members cost alone, and a term for each near pair.

    A Bayesian linear regression: E(X) = s sum d_i + sum e_i + sum over pairs of g[kind of pair], with d_i what was
    measured of i alone, and normal priors around s = 1, e = 0 and g = 0, whose widths are those under which what was
    measured is most likely. Pairs up to two blocks apart are of one kind where their members' kinds, their order and
    their distance are the same.

    Args:
        candidates: The candidates, n of them, in order.
        alone: What each costs alone, in nats a token, [n].
    """

    def __init__(self, candidates: Sequence[Candidate], alone: Floats) -> None:
        self._alone = np.maximum(alone, 0.0) + 1e-3
        kinds: dict[tuple[object, ...], int] = {}
        n = len(candidates)
        self._kind = np.full((n, n), -1)
        for i, one in enumerate(candidates):
            for j in range(i + 1, n):
                if (distance := candidates[j].block - one.block) > REACH:
                    break
                key = (*(tuple(each.kind for each in c.sublayers) for c in (one, candidates[j])), distance)
                self._kind[i, j] = self._kind[j, i] = kinds.setdefault(key, len(kinds))
        self._num_kinds = len(kinds)
        self._center = np.concatenate([[0.0, 1.0], np.zeros(len(kinds) + n)])
        typical = float(np.median(self._alone))
        self._widths = np.concatenate([[1.0, 1.0], np.full(len(kinds), typical), typical + 0.5 * self._alone])
        self._mean, self._root = self._center, 0.3 * np.diag(self._widths)

    def _design(self, sets: NDArray[np.bool_]) -> Floats:
        chosen = sets.astype(float)
        pairs = np.zeros((len(sets), self._num_kinds))
        for kind in range(self._num_kinds):
            pairs[:, kind] = np.einsum("si,ij,sj->s", chosen, self._kind == kind, chosen) / 2
        return np.concatenate([np.ones((len(sets), 1)), chosen @ self._alone[:, None], pairs, chosen], axis=1)

    def fit(self, sets: NDArray[np.bool_], losses: Floats, amounts: Floats) -> None:
        """Learn from the rise of the loss, [sets], without some sets, bool [sets, n], on some amounts of text, [sets].

        The better a set, the more it counts: what ruins a model does so in ways of its own.
        """
        design = self._design(sets)
        rest = losses - design @ self._center
        behind = losses - losses.min()
        best = -math.inf
        for noise in (0.02, 0.05, 0.1, 0.2):
            spread = np.hypot(noise / np.sqrt(amounts / amounts.min()), behind)
            for scale in (0.1, 0.3, 1.0, 3.0):
                scaled = design * (self._widths * scale)
                lower = np.linalg.cholesky(scaled @ scaled.T + np.diag(spread**2))
                white = np.linalg.solve(lower, rest)
                likelihood = -0.5 * float(white @ white) - float(np.log(np.diag(lower)).sum())
                if likelihood > best:
                    best, chosen = likelihood, (spread, scale)
        spread, scale = chosen
        widths = self._widths * scale
        scaled = design * widths / spread[:, None]
        root = np.linalg.inv(np.linalg.cholesky(scaled.T @ scaled + np.eye(len(widths)))).T
        self._mean = self._center + widths * (root @ (root.T @ (scaled.T @ (rest / spread))))
        self._root = widths[:, None] * root

    def predicted(self, sets: NDArray[np.bool_]) -> Floats:
        """The rise of the loss that is expected without sets, [sets]."""
        predicted: Floats = self._design(sets) @ self._mean
        return predicted

    def drawn(self, draw: np.random.Generator | None) -> tuple[Floats, Floats]:
        """What each costs, [n], and each pair, [n, n], as drawn from what is believed; the mean without a generator."""
        noise = 0 if draw is None else draw.standard_normal(len(self._mean))
        weights = self._mean + self._root @ noise if draw is not None else self._mean
        pairs = np.concatenate([weights[2 : 2 + self._num_kinds], [0.0]])
        return weights[1] * self._alone + weights[2 + self._num_kinds :], pairs[self._kind]
