"""Scores by how little a candidate changes the residual stream, all of them from one pass over the batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import LitPruneError
from lit_prune.measure import WhatIf, is_run_of_blocks, stream_means
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.scorers.base import SCORERS, Scorer


@SCORERS.register("block_influence")
@dataclass(frozen=True)
class BlockInfluence(Scorer):
    """BI = 1 - E cos(x_in, x_out): how far a block turns the hidden states (ShortGPT, arXiv 2403.03853).

    x_in and x_out are the residual stream before and behind it. The mean E is over all tokens; 0 is a block that turns
    nothing, 2 the most. For whole blocks and runs of them.

    Raises:
        LitPruneError: When called, a candidate is no block; nothing has run then.
    """

    together = True

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one pass."""
        _require_blocks("block_influence", what_if, candidates, "the same of sublayers is the scorer cosine")
        return Scores(stream_means(what_if, candidates, cosine_distance))


@SCORERS.register("cosine")
@dataclass(frozen=True)
class CosineDistance(Scorer):
    """1 - E cos(x, y): x the residual stream before a candidate, y that plus what it adds (LLM-Drop, 2406.15786).

    The mean E is over all tokens; 0 is a candidate that turns nothing, 2 the most. For attention and mlp sublayers,
    alone (`granularity` attention or mlp) or ranked together (LLM-Drop's joint drop), whole blocks and runs of them.
    """

    together = True

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one pass."""
        return Scores(stream_means(what_if, candidates, cosine_distance))


@SCORERS.register("angular")
@dataclass(frozen=True)
class AngularDistance(Scorer):
    """E (1/pi) arccos cos(x_l, x_l+n): the angle across n blocks at the last token (Gromov et al., 2403.17887).

    x_l is the residual stream before block l. The mean E is over sequences; 0 is no angle, 1 a half turn. For whole
    blocks and for runs of n neighbouring ones (`Candidate.together`), any number of which are scored by the same pass.

    Raises:
        LitPruneError: When called, a candidate is no block and no run of blocks; nothing has run then.
    """

    together = True

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one pass."""
        _require_blocks("angular", what_if, candidates, "for sublayers, see the scorer cosine")
        return Scores(stream_means(what_if, candidates, angular_distance, last_token=True))


@SCORERS.register("relative_norm")
@dataclass(frozen=True)
class RelativeNorm(Scorer):
    """E |f(x)|_p / |x + f(x)|_p: what a candidate adds, as a share of the residual stream behind it.

    Relative L1 and L2 of Siddiqui et al. (2407.16286), after Samragh et al. (2312.09299): x is the residual stream
    before a candidate, f(x) what that adds, and the norm is L1 or L2. The mean E is over all tokens; 0 is a candidate
    that adds nothing. For attention and mlp sublayers, whole blocks and runs of them.

    Args:
        norm: `l1` or `l2`.

    Raises:
        LitPruneError: The norm is another.
    """

    together = True

    norm: Literal["l1", "l2"] = "l2"

    def __post_init__(self) -> None:
        if self.norm not in ("l1", "l2"):
            raise LitPruneError(f"norm must be l1 or l2; found {self.norm!r}")

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one pass."""
        return Scores(stream_means(what_if, candidates, partial(relative_norm, order=int(self.norm[1]))))


@SCORERS.register("sensitivity")
@dataclass(frozen=True)
class Sensitivity(Scorer):
    """E (y - x)^2: the mean squared error of the residual stream behind a candidate when it is left out.

    EDGE-LLM's sensitivity of a layer (arXiv 2406.15758), the error of its output when it is compressed on its own, for
    the strongest compression there is: y is the stream behind a candidate, x the stream without what it adds. The mean
    E is over tokens and channels; 0 is a candidate that adds nothing. For attention and mlp sublayers, whole blocks and
    runs of them.
    """

    together = True

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one pass."""
        return Scores(stream_means(what_if, candidates, squared_error))


def cosine_distance(before: Tensor, after: Tensor) -> Tensor:
    """1 - cos of the angle between two states [..., hidden]: [...], from 0 to 2.

    Example:
        >>> cosine_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])).item()
        1.0
    """
    return 1 - F.cosine_similarity(before, after, dim=-1)


def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """The angle between two states [..., hidden] as a share of a half turn: [...], from 0 to 1.

    Example:
        >>> angular_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])).item()
        0.5
    """
    # arccos loses half of the digits where the angle is small, as it is between neighbouring blocks.
    one, other = F.normalize(before, dim=-1), F.normalize(after, dim=-1)
    difference, total = (vector.norm(dim=-1) for vector in (one - other, one + other))
    return 2 * torch.atan2(difference, total) / math.pi


def relative_norm(before: Tensor, after: Tensor, order: int = 2) -> Tensor:
    """The norm of what was added to a state [..., hidden], as a share of that of the sum: [...], 0 or more.

    Example:
        >>> relative_norm(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])).item()
        0.800000011920929
    """
    added = torch.linalg.vector_norm(after - before, order, dim=-1)
    share: Tensor = added / torch.linalg.vector_norm(after, order, dim=-1)
    return share


def squared_error(before: Tensor, after: Tensor) -> Tensor:
    """The mean square of what was added to a state [..., hidden]: [...], 0 or more.

    Example:
        >>> squared_error(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])).item()
        8.0
    """
    return (after - before).square().mean(dim=-1)


def _require_blocks(scorer: str, what_if: WhatIf, candidates: Sequence[Candidate], instead: str) -> None:
    anatomy = find_sublayers(what_if.model)
    for candidate in candidates:
        if not is_run_of_blocks(anatomy, candidate):
            raise LitPruneError(
                f"{scorer} is defined for whole blocks and runs of them, {candidate.name} is none: use "
                f"granularity=block; {instead}"
            )
