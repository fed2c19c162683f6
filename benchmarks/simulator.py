"""How much work a search is on a model that is not there: the real search loop, over losses that are drawn.

Pruner, search, measure and its bookkeeping of states are the real ones; the model is on the meta device, and what would
have been a pass through it is counted and answered from a table. What is drawn has the spread that was seen in real
searches (docs/benchmarks/performance.md). Counts are those of a search that finds such losses: where removals fall
decides how much of the states stays valid, and how often lazy search is surprised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_prune.anatomy import find_sublayers
from lit_prune.evaluation import MODES, SearchWork, require_mode
from lit_prune.measure import Portion, Runner, WhatIf
from lit_prune.plan import Candidate, PruneStep, Scores, SublayerId
from lit_prune.pruning import Pruner
from lit_prune.searches import Budget


def simulate(
    make_model: Callable[[], nn.Module],
    batches: Sequence[Mapping[str, Tensor]],
    mode: str,
    *,
    amount: float,
    seed: int = 0,
    max_state_bytes: int | None = None,
) -> SearchWork:
    """Run a search whose every loss is drawn, and count.

    Args:
        make_model: Function that makes the model, on the meta device or another; nothing in it runs.
        batches: Batches that would be measured on; only their sizes matter.
        mode: The kind of search, one of `MODES`.
        amount: Share of the parameters to remove.
        seed: Seed of the draw.
        max_state_bytes: Bytes of states that are kept, as for `WhatIf`.

    Raises:
        LitPruneError: The mode is unknown, or the amount cannot be reached.
    """
    require_mode(mode)
    search, in_one_pass = MODES[mode]
    model = make_model()
    losses = DrawnLosses(len(find_sublayers(model).blocks), len(batches), seed=seed)
    pruner = Pruner(model, scorer=_InOnePass(losses) if in_one_pass else "nri", search=search)
    budget = Budget(amount, pruner.num_parameters)
    pruner.require_reachable(budget)
    shape = (*batches[0]["input_ids"].shape, find_sublayers(model).facts().hidden_size)
    state = torch.empty(shape, dtype=pruner.model.dtype, device="meta")
    what_if = WhatIf(model, batches, max_state_bytes=max_state_bytes, runner=DrawnPasses(losses, state))
    num_removed = len(list(pruner.steps(what_if, budget)))
    evaluations, heads = what_if.num_block_evaluations, what_if.num_head_evaluations
    length = len(find_sublayers(make_model()).blocks)
    return SearchWork(mode, num_removed, evaluations, heads, evaluations / length / len(batches))


class DrawnLosses:
    """Mean losses of a made-up model by what is out of it and by batch.

    A sublayer costs 0.14 nats in the middle of the model and more at its ends; two that are both gone cost 0.035 nats
    more or less than their sum within two blocks, 0.008 farther off; batches differ by 0.09 nats, and by 0.02 in how
    the costs change (standard deviations; docs/benchmarks/performance.md has where these come from).

    Args:
        num_blocks: Number of the model's blocks.
        num_batches: Number of batches in the calibration set.
        seed: Seed of the draw.
    """

    def __init__(self, num_blocks: int, num_batches: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        block = torch.arange(num_blocks).repeat_interleave(2)
        to_end = torch.minimum(block, num_blocks - 1 - block)
        self.costs = 0.14 * (0.6 * draw(2 * num_blocks)).exp() * (1 + 8 * torch.exp(-to_end / 1.5))
        self.costs_by_batch = 0.09 * draw(num_batches, 2 * num_blocks)
        near = (block[:, None] - block[None]).abs() <= 2
        together = draw(2 * num_blocks, 2 * num_blocks) * torch.where(near, 0.035, 0.008)
        self.together = together.triu(1)
        self.together_by_batch = 0.02 / math.sqrt(num_blocks) * draw(num_batches, 2 * num_blocks)

    def __call__(self, gone: frozenset[SublayerId], batch: int) -> float:
        """The mean loss in nats a token, without what is gone."""
        index = torch.tensor(
            sorted(2 * sublayer.block + (sublayer.kind == "mlp") for sublayer in gone), dtype=torch.long
        )
        own = (self.costs + self.costs_by_batch[batch])[index].sum()
        changed = len(index) * self.together_by_batch[batch][index].sum()
        return float(2 + own + self.together[index][:, index].sum() + changed)


class DrawnPasses(Runner):
    """Passes that do not happen: states are marked as known, and losses come from a table.

    Args:
        losses: Mean losses in nats a token, by what is gone and by batch.
        state: What every block puts out, [batch, seq, hidden] on the meta device.
    """

    def __init__(self, losses: Callable[[frozenset[SublayerId], int], float], state: Tensor) -> None:
        super().__init__()
        self._losses = losses
        self._state = state

    def extend(self, portion: Portion, first: int, length: int) -> None:
        """See `Runner`."""
        portion.trace.states |= dict.fromkeys(range(first, length), self._state)

    def dense(self, portion: Portion, first: int) -> Tensor:
        """See `Runner`."""
        self.extend(portion, first, len(portion.blocks))
        return self._drawn(portion, ())

    def without(self, portion: Portion, candidate: Candidate, first: int) -> Tensor:
        """See `Runner`."""
        return self._drawn(portion, candidate.sublayers)

    def _drawn(self, portion: Portion, sublayers: Sequence[SublayerId]) -> Tensor:
        nats = self._losses(frozenset((*portion.anatomy.removed, *sublayers)), portion.place[0])
        return torch.full((portion.num_sequences,), (self._state.shape[1] - 1) * nats, dtype=torch.float64)


@dataclass(frozen=True)
class _InOnePass:
    """Scores all candidates by one pass over the batches, as scorers of the residual stream do."""

    losses: DrawnLosses
    together: bool = True

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        for _ in what_if.passes():
            pass  # what would be seen is drawn
        return Scores({candidate: self.losses(frozenset(candidate.sublayers), 0) for candidate in candidates})


def blank_batches(num_batches: int, batch_size: int, window: int) -> Sequence[Mapping[str, Tensor]]:
    """Batches of the right sizes for a search that is simulated."""
    return [{"input_ids": torch.zeros(batch_size, window, dtype=torch.long)} for _ in range(num_batches)]
