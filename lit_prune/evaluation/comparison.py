"""Methods side by side: each prunes a fresh copy of each model by each amount, and what is left is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import BudgetError, DataError
from lit_prune.evaluation.perplexity import perplexity
from lit_prune.evaluation.semi_structured import wanda_2_4
from lit_prune.evaluation.speed import compare_speed, dense_twin, require_room
from lit_prune.evaluation.tasks import TaskScore
from lit_prune.files import file_name, read_json, record_of, to_json, write_text
from lit_prune.measure import Journal, WhatIf, model_fingerprints
from lit_prune.plan import Method, PrunePlan
from lit_prune.pruning import Pruner, describe_run, progress_bar
from lit_prune.searches import Budget
from lit_prune.surgery import compacted

DENSE, WANDA = "dense", "wanda-2:4"
Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """A line of the comparison: a method, None for the baselines, and the batches that it measures on.

    The source says where the batches came from, for the plan's readers. A compensation that comes at the end is fitted
    on `text` where there is any, and `text_source` says what that is.
    """

    label: str
    method: Method | None
    calibration: Batches
    source: Mapping[str, Any] = field(default_factory=dict)
    text: Batches = ()
    text_source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What the row depends on beside model and amount, as JSON has it."""
        return {**self.of_search, **({"compensated_on": dict(self.text_source)} if self.text else {})}

    @property
    def of_search(self) -> dict[str, Any]:
        """What the search depends on; it does not see the text that a compensation at the end is fitted on."""
        method = self.method.options if self.method else {}
        if method.get("compensate") == "none":
            del method["compensate"]
        found: dict[str, Any] = json.loads(json.dumps({**method, "calibration": dict(self.source)}))
        return found


@dataclass(frozen=True)
class Result:
    """What one method made of one model at one amount.

    Attributes:
        settings: Settings of the entry, as JSON has them.
        amount: Share of the parameters that was to go; 0 for the baselines.
        num_parameters: Parameters that are left.
        share_removed: Share of all parameters that are gone.
        zeros: Share of all parameters that a method has zeroed; 0 where it removes.
        perplexities: Perplexities by the name of the text, on windows that no method has seen.
        prefill: How many times as fast as the dense model a prompt is read.
        decode: The same for writing a token.
        num_blocks: Blocks of the dense model.
        passes: Cost of the search, in dense forward passes over the calibration tokens.
        removed: Names of what went, in order.
    """

    model: str
    label: str
    settings: Mapping[str, Any]
    amount: float
    num_parameters: int
    share_removed: float
    zeros: float
    perplexities: Mapping[str, float]
    tasks: Mapping[str, TaskScore]
    prefill: float
    decode: float
    num_blocks: int
    passes: float
    removed: tuple[str, ...]

    @property
    def mean_accuracy(self) -> float:
        """The mean of the tasks' scores; NaN without tasks."""
        return math.fsum(score.value for score in self.tasks.values()) / len(self.tasks) if self.tasks else math.nan

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of `asdict`, from JSON."""
        tasks = {name: record_of(TaskScore, score) for name, score in data["tasks"].items()}
        return record_of(cls, {**data, "tasks": tasks, "removed": tuple(data["removed"])})


def read_results(path: str | Path) -> tuple[dict[str, Any], list[Result]]:
    """Read the settings and the rows that `Results` wrote.

    Raises:
        DataError: The file cannot be read, or is damaged.
    """
    try:
        first, *lines = Path(path).read_text(encoding="utf-8").splitlines()
        return dict(json.loads(first)), [Result.from_dict(read_json(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read the comparison {path}: {error!r}; make it again") from error


def rank_correlation(rows: Sequence[Result], text: str) -> tuple[float, int]:
    """Measure how well perplexity on one text foretells mean accuracy, by Spearman's correlation over rows with tasks.

    Returns:
        The correlation, -1 where lower perplexity always means higher accuracy, and the number of rows.
    """
    pairs = [(row.perplexities[text], row.mean_accuracy) for row in rows if row.tasks]
    if len(pairs) < 2:
        return math.nan, len(pairs)
    perplexity, accuracy = torch.tensor(pairs, dtype=torch.float64).T
    return float(spearman_corrcoef(perplexity, accuracy)), len(pairs)


class Results:
    """The rows so far, in a file that is written anew after each: a comparison that was stopped goes on.

    Args:
        path: File of JSON lines; the first line holds the settings that the rows are valid for.
        header: The present settings, in plain types.

    Raises:
        DataError: The file is of a comparison with other settings.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._header = json.loads(json.dumps(to_json({**header})))
        self.found: list[Result] = []
        if path.exists():
            there, self.found = read_results(path)
            if there != self._header:
                names = [name for name in {**there, **self._header} if there.get(name) != self._header.get(name)]
                raise DataError(f"{path} is of a comparison with other {', '.join(names)}; name another output folder")

    def get(self, model: str, entry: Entry, amount: float) -> Result | None:
        """The row, None where it is not there yet; a DataError where it is there with other settings."""
        wanted = (model, entry.label, amount)
        row = next((row for row in self.found if (row.model, row.label, row.amount) == wanted), None)
        if row is not None and row.settings != entry.settings:
            raise DataError(f"{self.path} has {entry.label!r} with other settings; give it another label")
        return row

    def add(self, row: Result) -> None:
        """Keep a row and write all of them."""
        self.found.append(row)
        lines = [json.dumps(self._header), *(json.dumps(to_json(asdict(found))) for found in self.found)]
        write_text(self.path, "".join(f"{line}\n" for line in lines))


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
    """

    unseen: Mapping[str, Batches]
    folder: Path
    tasks: Callable[[PreTrainedModel], dict[str, TaskScore]] = lambda model: {}
    speed: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    impossible: list[str] = field(default_factory=list)

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
        plan, zeros = None, 0.0
        num_blocks = find_sublayers(model).num_blocks
        total = sum(parameter.numel() for parameter in model.parameters())
        if entry.method is not None:
            plan = self._prune(name, model, entry, entry.method, amount)
        elif entry.label == WANDA:
            zeros = wanda_2_4(model, entry.calibration)
        gone = plan.num_removed_parameters if plan else 0
        prefill, decode = self._speedup(model) if plan else (1.0, 1.0)
        return Result(
            model=name,
            label=entry.label,
            settings=entry.settings,
            amount=amount,
            num_parameters=total - gone,
            share_removed=gone / total,
            zeros=zeros,
            perplexities={text: perplexity(model, batches).ppl for text, batches in self.unseen.items()},
            tasks=self.tasks(model),
            prefill=prefill,
            decode=decode,
            num_blocks=num_blocks,
            passes=plan.cost if plan else 0.0,
            removed=tuple(step.removed.name for step in plan.steps) if plan else (),
        )

    def _prune(self, name: str, model: PreTrainedModel, entry: Entry, method: Method, amount: float) -> PrunePlan:
        pruner = Pruner(model, method, model_name=name)
        budget = Budget(amount, pruner.num_parameters)
        pruner.require_reachable(budget)
        pruner.plan = describe_run(pruner.plan, budget, entry.source)
        stem = f"{file_name(name)}/{file_name(entry.label)}"
        # What a smaller amount measured is not measured again; the plan's cost counts it all the same.
        header = {**entry.of_search, **model_fingerprints(model)}
        with (
            Journal(self.folder / f"journals/{stem}.jsonl", header) as journal,
            progress_bar(f"{entry.label} {amount:.0%}", goal=budget.target, shown=self.progress) as bar,
        ):
            what_if = WhatIf(model, entry.calibration, progress=bar, journal=journal)
            for _ in pruner.steps(what_if, budget):
                bar.removed(pruner.reached)
        with progress_bar(f"{entry.label} {amount:.0%}, compensating", shown=self.progress, in_one=True) as bar:
            pruner.mend(lambda: WhatIf(model, entry.text or entry.calibration, progress=bar))
        pruner.record_outcome(budget, left="amount")
        pruner.plan.save(self.folder / f"plans/{stem}-{amount:g}.json")
        return pruner.plan

    def _speedup(self, model: PreTrainedModel) -> tuple[float, float]:
        # The twin comes first: where the stack is closed, the config tells of fewer blocks.
        dense_model = dense_twin(model)
        with compacted(model):
            speeds = compare_speed({"dense": dense_model, "pruned": model}, **self.speed)
        return speeds["pruned"].times_as_fast(speeds["dense"])
