"""What searches cost and what they find, side by side on one model and one set of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.errors import LitPruneError
from lit_prune.evaluation.perplexity import perplexity
from lit_prune.measure import NaiveWhatIf, WhatIf, input_ids_of, progress_bar
from lit_prune.plan import Named
from lit_prune.pruning import Pruner
from lit_prune.searches import Budget

NAIVE = "naive"


@dataclass(frozen=True)
class SearchCost:
    """One search.

    Attributes:
        name: `naive`, or the search's.
        removed: What it took out, in order.
        block_evaluations: Decoder blocks that ran, times batches of the calibration set.
        head_evaluations: Losses that were computed, times batches.
        dense_passes: The block evaluations in full passes over the calibration set.
        tokens: Calibration tokens whose loss was computed, over all candidates and rounds.
        num_disturbed: Rounds in which a search that spares itself work was surprised; None for others.
        seconds: From the first measurement to the last removal.
        share_removed: Of all parameters.
        ppl: Perplexity of what is left on text that no search has seen.
    """

    name: str
    removed: tuple[str, ...]
    block_evaluations: int
    head_evaluations: int
    dense_passes: float
    tokens: int
    num_disturbed: int | None
    seconds: float
    share_removed: float
    ppl: float


def compare_searches(
    make_model: Callable[[], PreTrainedModel],
    batches: Sequence[Mapping[str, Tensor]],
    unseen: Sequence[Mapping[str, Tensor]],
    *,
    amount: float,
    searches: Sequence[Named],
    scorer: Named = "nri",
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = True,
) -> Iterator[SearchCost]:
    """Prune a fresh copy of a model by each search in turn, and yield what each cost.

    Args:
        make_model: Loads the model.
        batches: What the searches measure on.
        unseen: What the perplexity of the result is measured on.
        amount: Share of all parameters to remove.
        searches: Names or mappings as for `Pruner`; `naive` is progressive search by full passes.
        scorer: As for `Pruner`.
        clock: Seconds.
        progress: Whether to show a progress bar.

    Raises:
        LitPruneError: A search is unknown, or the amount cannot be reached; before anything is measured.
    """
    if not searches:
        raise LitPruneError("name at least one search to compare")
    for search in searches:
        yield _cost(make_model(), batches, unseen, amount, search, scorer, clock, progress)


def _cost(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    unseen: Sequence[Mapping[str, Tensor]],
    amount: float,
    search: Named,
    scorer: Named,
    clock: Callable[[], float],
    progress: bool,
) -> SearchCost:
    name = search if isinstance(search, str) else str(search["name"])
    pruner = Pruner(model, scorer=scorer, search="progressive" if name == NAIVE else search)
    budget = Budget(amount, pruner.num_parameters)
    pruner.require_reachable(budget)
    measure: Any = NaiveWhatIf if name == NAIVE else WhatIf
    started = clock()
    with progress_bar(name, goal=budget.target, shown=progress) as bar:
        what_if: WhatIf = measure(model, batches, progress=bar)
        for _ in pruner.steps(what_if, budget):
            bar.removed(pruner.reached)
    tokens = sum(input_ids_of(batch).numel() for batch in batches)
    return SearchCost(
        name=name,
        removed=tuple(step.removed.name for step in pruner.plan.steps),
        block_evaluations=what_if.num_block_evaluations,
        head_evaluations=what_if.num_head_evaluations,
        dense_passes=what_if.cost,
        tokens=what_if.num_head_evaluations * tokens // len(batches),
        num_disturbed=pruner.plan.num_disturbed,
        seconds=clock() - started,
        share_removed=pruner.plan.num_removed_parameters / pruner.num_parameters,
        ppl=perplexity(model, unseen).ppl,
    )
