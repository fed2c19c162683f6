"""`python -m benchmarks.search MODEL`: what searches cost and what they find, on one model and one set of tokens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import run
from benchmarks.naive import NaiveWhatIf
from lit_prune.commands.arguments import require_writable
from lit_prune.commands.options import Loading, Sample
from lit_prune.data import calibration_batches
from lit_prune.errors import LitPruneError
from lit_prune.evaluation import perplexity
from lit_prune.files import markdown_line, markdown_table, say, write_text
from lit_prune.measure import WhatIf, input_ids_of
from lit_prune.plan import Named
from lit_prune.pruning import Pruner, progress_bar
from lit_prune.searches import Budget, require_share

NAIVE = "naive"
SAMPLE, LOADING = Sample(window=256, num_windows=8, batch_size=2), Loading()
HEADS = (
    "search",
    "block evaluations",
    "heads",
    "dense passes",
    "of the first",
    "tokens",
    "disturbed",
    "seconds",
    "removed",
    "ppl",
)


@dataclass(frozen=True)
class SearchCost:
    """One search.

    Attributes:
        name: Name of the search, or `naive`.
        removed: Names of what it took out, in order.
        block_evaluations: Decoder blocks that ran, times batches of the calibration set.
        head_evaluations: Losses that were computed, times batches.
        dense_passes: The block evaluations in full passes over the calibration set.
        tokens: Calibration tokens whose loss was computed, over all candidates and rounds.
        num_disturbed: Rounds in which a search that spares itself work was surprised; None for others.
        seconds: Seconds from the first measurement to the last removal.
        share_removed: Share of all parameters that is gone.
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
    """Prune a fresh copy of a model by every search in turn, and yield what it cost.

    Args:
        make_model: Function that loads the model.
        batches: Batches that the searches measure on.
        unseen: Batches that the perplexity of the result is measured on.
        amount: Share of all parameters to remove.
        searches: Names or mappings as for `Recipe`; `naive` is progressive search by full passes.
        scorer: The scorer, as for `Recipe`.
        clock: Clock that gives seconds.
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
    started = clock()
    with progress_bar(name, goal=budget.target, shown=progress) as bar:
        measure = NaiveWhatIf if name == NAIVE else WhatIf
        what_if = measure(model, batches, progress=bar)
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


def search(
    model: str,
    *,
    searches: list[str] | None = None,
    amount: float = 0.2,
    scorer: str = "nri",
    sample: Sample = SAMPLE,
    num_unseen: int = 24,
    loading: Loading = LOADING,
    output: str | None = None,
) -> None:
    """Compare what searches cost and what they find, on one model and text.

    Args:
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        searches: Searches, in this order; by default [naive, progressive, lazy, one_shot]. naive is progressive
            search by a full pass for every candidate.
        amount: Share of all parameters to remove, above 0 and below 1.
        scorer: nri, ri or ppl.
        sample: The text that the searches measure on; a batch is the least that a search can screen on.
        num_unseen: Windows for the perplexity of the result, none of which a search sees.
        loading: How the model is loaded.
        output: Markdown file for the table.
    """
    require_writable(output)
    require_share(amount)
    sample.require_possible(num_unseen=num_unseen)
    drawn = sample.windows(loading.tokenizer(model), wanted=sample.num_windows + num_unseen)
    unseen = calibration_batches(drawn[sample.num_windows :], sample.batch_size)
    batches = calibration_batches(drawn[: sample.num_windows], sample.batch_size)
    names = searches or [NAIVE, "progressive", "lazy", "one_shot"]
    make_model = partial(loading.model, model)
    costs: list[SearchCost] = []
    for cost in compare_searches(make_model, batches, unseen, amount=amount, searches=names, scorer=scorer):
        costs.append(cost)
        say(f"{cost.name}: {', '.join(cost.removed)}")
        if output is not None:
            write_text(output, table(costs))
    say(table(costs))


def table(costs: Sequence[SearchCost]) -> str:
    """A Markdown table, and the order that each search found."""
    rows = [
        (
            cost.name,
            f"{cost.block_evaluations:,}",
            f"{cost.head_evaluations:,}",
            f"{cost.dense_passes:.1f}",
            f"{cost.dense_passes / costs[0].dense_passes:.3f}",
            f"{cost.tokens:,}",
            "" if cost.num_disturbed is None else f"{cost.num_disturbed} of {len(cost.removed)}",
            f"{cost.seconds:.0f}",
            f"{cost.share_removed:.2%}",
            f"{cost.ppl:.2f}",
        )
        for cost in costs
    ]
    orders = [f"- {markdown_line(cost.name)}: {', '.join(cost.removed)}" for cost in costs]
    return "\n".join([markdown_table(HEADS, rows), "", "Order of removal:", "", *orders, ""])


main = partial(run, search)

if __name__ == "__main__":
    sys.exit(main())
