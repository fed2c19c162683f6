"""Methods side by side: each prunes a fresh copy of each model by each amount, and what is left is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.costs import count_costs
from lit_prune.errors import BudgetError
from lit_prune.evaluation.perplexity import perplexity
from lit_prune.evaluation.results import WANDA, Batches, Entry, Result, Results
from lit_prune.evaluation.semi_structured import wanda_2_4
from lit_prune.evaluation.speed import Speedup, compare_speed, dense_twin, require_room, speedup
from lit_prune.evaluation.tasks import TaskScore
from lit_prune.files import file_name
from lit_prune.measure import Journal, WhatIf, model_fingerprints, perplexity_of
from lit_prune.plan import Method, PrunePlan
from lit_prune.pruning import Pruner, describe_run, expected_of, progress_bar
from lit_prune.searches import Budget, Quota
from lit_prune.surgery import compacted


@dataclass
class Comparison:
    """What the rows have in common, and how a row is made.

    Attributes:
        unseen: Batches by the name of their text, on which perplexity is measured.
        folder: The folder that keeps plans and journals.
        tasks: Function that measures tasks on a model; by default none is measured.
        speed: Options of `compare_speed`.
        progress: Whether to show a progress bar.
        impossible: What was left out so far, and why.
        clock: Reads the time in seconds.
    """

    unseen: Mapping[str, Batches]
    folder: Path
    tasks: Callable[[PreTrainedModel], dict[str, TaskScore]] = lambda model: {}
    speed: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    impossible: list[str] = field(default_factory=list)
    clock: Callable[[], float] = time.perf_counter

    def rows(
        self,
        name: str,
        make_model: Callable[[], PreTrainedModel],
        entries: Sequence[Entry],
        amounts: Sequence[float],
        kept: Results,
    ) -> Iterator[Result]:
        """Every row of one model, in the order of entries and amounts; those that are there are not made again.

        Args:
            name: Name of the model.
            make_model: Function that loads a fresh copy of it.
            entries: The lines that are compared.
            amounts: Shares of the parameters to remove; `impossible` tells what a method cannot give.
            kept: The rows so far; new ones are added.

        Raises:
            LitPruneError: A method cannot prune the model; the rows before it are kept.
        """
        for entry in entries:
            for amount in sorted(amounts) if entry.method else [0.0]:
                row = kept.get(name, entry, amount)
                if row is None:
                    try:
                        row = self._row(name, make_model(), entry, amount)
                    except BudgetError as error:
                        self.impossible.append(f"{name}, {entry.label}, {amount:.0%}: {error}")
                        continue
                    kept.add(row)
                yield row

    def _row(self, name: str, model: PreTrainedModel, entry: Entry, amount: float) -> Result:
        require_room(name, model, **self.speed)  # before anything is measured
        plan, zeros, seconds = None, 0.0, 0.0
        anatomy, kept = find_sublayers(model), count_costs(model, 1)
        total = sum(parameter.numel() for parameter in model.parameters())
        if entry.method is not None:
            plan, seconds = self._prune(name, model, entry, entry.method, amount)
        elif entry.label == WANDA:
            zeros = wanda_2_4(model, entry.calibration)
        gone = plan.num_removed_parameters if plan else 0
        uncached = sum(kept.kv_elements[sublayer] for sublayer in plan.removed) if plan else 0
        last = plan.steps[-1].nll_after if plan and plan.steps else None
        speedups = self._speedups(model) if plan else {}
        losses = {text: perplexity(model, batches) for text, batches in self.unseen.items()}
        return Result(
            model=name,
            label=entry.label,
            settings=entry.settings,
            amount=amount,
            num_parameters=total - gone,
            share_removed=gone / total,
            zeros=zeros,
            perplexities={text: loss.ppl for text, loss in losses.items()},
            tasks=self.tasks(model),
            prefill=speedups["prefill"].ratio if speedups else 1.0,
            decode=speedups["decode"].ratio if speedups else 1.0,
            num_blocks=anatomy.num_blocks,
            passes=plan.cost if plan else 0.0,
            removed=tuple(step.removed.name for step in plan.steps) if plan else (),
            draw=entry.draw,
            losses=losses,
            speed_intervals={phase: (each.low, each.high) for phase, each in speedups.items()},
            dtype=str(model.dtype).removeprefix("torch."),
            cache=1 - uncached / max(1, kept.total_kv_elements),
            searched=0.0 if last is None else perplexity_of(last),
            seconds=seconds,
        )

    def _prune(
        self, name: str, model: PreTrainedModel, entry: Entry, method: Method, amount: float
    ) -> tuple[PrunePlan, float]:
        pruner = Pruner(model, method, model_name=name)
        budget = Budget(amount, pruner.num_parameters)
        pruner.require_reachable(budget)
        pruner.plan = describe_run(pruner.plan, budget, entry.source)
        stem = f"{file_name(name)}/{file_name(entry.label)}" + (f"-draw{entry.draw + 1}" if entry.draw else "")
        # What a smaller amount measured is not measured again; the plan's cost counts it all the same.
        header = {**entry.of_search, **model_fingerprints(model)}
        with (
            Journal(self.folder / f"journals/{stem}.jsonl", header) as journal,
            progress_bar(f"{entry.label} {amount:.0%}", goal=budget.target, shown=self.progress) as bar,
        ):
            what_if = WhatIf(model, entry.calibration, progress=bar, journal=journal)
            bar.foresee(expected_of(pruner, Quota(budget.target), what_if), len(what_if.batches))
            started = self.clock()
            for _ in pruner.steps(what_if, budget):
                bar.removed(pruner.reached)
            seconds = self.clock() - started
        with progress_bar(f"{entry.label} {amount:.0%}, compensating", shown=self.progress, in_one=True) as bar:
            pruner.mend(lambda: WhatIf(model, entry.text or entry.calibration, progress=bar))
        pruner.record_outcome(budget, left="amount")
        pruner.plan.save(self.folder / f"plans/{stem}-{amount:g}.json")
        return pruner.plan, seconds

    def _speedups(self, model: PreTrainedModel) -> dict[str, Speedup]:
        # The twin comes first: where the stack is closed, the config tells of fewer blocks.
        dense_model = dense_twin(model)
        with compacted(model):
            speeds = compare_speed({"dense": dense_model, "pruned": model}, **self.speed)
        before, after = speeds["dense"], speeds["pruned"]
        return {
            "prefill": speedup(before.prefill_readings, after.prefill_readings),
            "decode": speedup(before.decode_readings, after.decode_readings),
        }
