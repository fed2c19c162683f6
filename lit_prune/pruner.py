"""The one loop body of pruning, shared by the callback and the command line: candidates, scores, choice, removal."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lit_prune.anatomy import Anatomy, find_sublayers, language_model
from lit_prune.data import fingerprint
from lit_prune.errors import BudgetError, LitPruneError, PlanError
from lit_prune.measure import Journal, WhatIf, input_ids_of, progress_bar, require_understood, weights_fingerprint
from lit_prune.plan import KINDS, Candidate, PrunePlan, PruneStep, Scores, SublayerId
from lit_prune.scorers import SCORERS, Scorer
from lit_prune.searches import SEARCHES, Budget, Search
from lit_prune.surgery import compact, remove

GRANULARITIES = ("sublayer", "attention", "mlp", "block")
Named = str | Mapping[str, Any]
"""A name, or a mapping with `name` and options."""


class Pruner:
    """Prunes one model, one removal at a time, and keeps the plan.

    Args:
        model: A causal language model, perhaps wrapped by peft; changed in place.
        scorer: A registered name, a mapping `{name: nri, baseline: original}`, an import path, or a `Scorer`.
        search: The same for a `Search`.
        granularity: What goes at a time: a `sublayer` of either kind, `attention` only, `mlp` only, a whole `block`.
        protect: What must stay: `attention.0`, `mlp.3`, `block.2`.
        model_name: For the plan's readers.

    Attributes:
        plan: What was removed so far; set it to resume.
        protected: What must stay.

    Raises:
        AnatomyError: The model is not understood.
        LitPruneError: A name is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scorer: Named | Scorer = "nri",
        search: Named | Search = "progressive",
        granularity: str = "sublayer",
        protect: Sequence[str] = (),
        model_name: str = "",
    ) -> None:
        if granularity not in GRANULARITIES:
            raise LitPruneError(f"granularity must be one of {', '.join(GRANULARITIES)}; found {granularity!r}")
        self.model = language_model(model)
        anatomy = find_sublayers(self.model)
        self.granularity = granularity
        self.protected = _protected(protect, anatomy)
        self._scorer: Scorer = _create(SCORERS, scorer)
        self._search: Search = _create(SEARCHES, search)
        self.plan = PrunePlan(
            anatomy.facts(
                model_name or getattr(self.model.config, "_name_or_path", ""),
                getattr(self.model.config, "_commit_hash", None),
            ),
            scorer=_described(scorer, self._scorer),
            search=_described(search, self._search),
            versions=_versions(),
        )

    @property
    def num_parameters(self) -> int:
        """Parameters of the model before the first removal."""
        return self.plan.model.num_parameters

    def candidates(self) -> dict[Candidate, int]:
        """What may go now, with the parameters that each would free."""
        anatomy = find_sublayers(self.model)
        free = [each.id for each in anatomy.sublayers if each.id not in self.protected]
        if self.granularity == "block":
            pairs = [tuple(SublayerId(each.block, kind) for kind in KINDS) for each in free if each.kind == KINDS[0]]
            return {Candidate(pair): anatomy.num_freed(pair) for pair in pairs if all(each in free for each in pair)}
        kinds = KINDS if self.granularity == "sublayer" else (self.granularity,)
        return {Candidate((each,)): anatomy.num_freed([each]) for each in free if each.kind in kinds}

    @property
    def num_available(self) -> int:
        """Parameters that all candidates together would free."""
        return find_sublayers(self.model).num_freed(each for one in self.candidates() for each in one.sublayers)

    def require_reachable(self, budget: Budget) -> None:
        """Refuse a budget that the candidates cannot give, before anything is measured.

        Raises:
            BudgetError: With what they can give.
        """
        what = {"sublayer": "sublayers", "block": "whole blocks"}.get(self.granularity, f"{self.granularity} sublayers")
        budget.require_reachable(self.num_available, what, self.plan.num_removed_parameters)

    def step(
        self,
        what_if: WhatIf,
        budget: Budget,
        *,
        optimizers: Iterable[Optimizer] = (),
        epoch: int | None = None,
        agree: Callable[[str], str] = lambda name: name,
    ) -> PruneStep:
        """Score, choose, remove, record: one removal.

        Args:
            what_if: The measure, over the calibration batches.
            budget: Chooses among the scored; its target is not checked here.
            optimizers: They forget what is removed.
            epoch: Training epoch at whose start this happens.
            agree: Makes all processes of a distributed run take the same name.

        Raises:
            BudgetError: Nothing is left to remove.
            MeasureError: A loss is NaN or infinite; nothing is removed then.
        """
        sizes = self.candidates()
        if not sizes:
            raise BudgetError("there is nothing left that may be removed")
        before = what_if.cost
        scores: Scores = self._search(
            lambda candidates: self._scorer(what_if, candidates, self.plan.steps), list(sizes), self.plan.steps
        )
        choice = Candidate.parse(agree(budget.choose(scores.importance, sizes, self.plan.num_removed_parameters).name))
        step = PruneStep(
            removed=choice,
            num_parameters=remove(self.model, choice.sublayers, optimizers),
            score=float(scores.importance[choice]),
            nll_before=scores.base_nll,
            nll_after=scores.nll.get(choice),
            cost=what_if.cost - before,
            epoch=epoch,
            scores={candidate.name: float(score) for candidate, score in scores.importance.items()},
        )
        self.plan = self.plan.with_step(step)
        return step


def prune(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    amount: float,
    scorer: Named | Scorer = "nri",
    search: Named | Search = "progressive",
    granularity: str = "sublayer",
    protect: Sequence[str] = (),
    model_name: str = "",
    calibration: Mapping[str, Any] | None = None,
    progress: bool = True,
    journal: str | Path | None = None,
    on_step: Callable[[PrunePlan], object] = lambda plan: None,
    max_state_bytes: int | None = None,
) -> PrunePlan:
    """Prune a model in place, without training.

    Args:
        model: A causal language model of transformers, perhaps wrapped by peft.
        batches: Calibration: dicts with `input_ids` [batch, seq], perhaps `labels` and `attention_mask`.
        amount: Share of all parameters to remove, above 0 and below 1.
        scorer: See `Pruner`.
        search: See `Pruner`.
        granularity: See `Pruner`.
        protect: See `Pruner`.
        model_name: For the plan's readers.
        calibration: Where the batches came from, for the plan's readers.
        progress: Whether to show a progress bar.
        journal: File to which every measurement is written as it is made. Where it is there already, and of the same
            model, data and settings, its measurements are not made again: a search that was killed goes on.
        on_step: Called with the plan so far after every removal.
        max_state_bytes: See `WhatIf`.

    Returns:
        The plan: what was removed, in which order, and why.

    Raises:
        LitPruneError: One of its subclasses says what was wrong; checked before the first measurement where possible.
    """
    options: Any = {"scorer": scorer, "search": search, "granularity": granularity, "protect": protect}
    pruner = Pruner(model, **options, model_name=model_name)
    budget = Budget(amount, pruner.num_parameters)
    pruner.require_reachable(budget)
    require_understood(pruner.model)
    batches = list(batches)
    pruner.plan = describe_run(pruner.plan, budget, {**(calibration or {}), **fingerprint(batches)})
    kept = Journal(journal, _journal_header(pruner, batches))
    with progress_bar("scoring", shown=progress) as advance:
        what_if = WhatIf(model, batches, progress=advance, journal=kept, max_state_bytes=max_state_bytes)
        while budget.remaining(pruner.plan.num_removed_parameters):
            pruner.step(what_if, budget)
            on_step(pruner.plan)
    compact(pruner.model)
    return pruner.plan


def _journal_header(pruner: Pruner, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What measurements are valid for, and the settings that decide which are made."""
    plan = pruner.plan.to_dict()
    named = ("scorer", "search", "budget", "calibration")
    return {
        **{name: plan[name] for name in named},
        "granularity": pruner.granularity,
        "protect": sorted(map(str, pruner.protected)),
        "model": {name: value for name, value in plan["model"].items() if name not in ("name", "revision")},
        "weights": weights_fingerprint(pruner.model),
        "batches": [list(input_ids_of(batch).shape) for batch in batches],
    }


def describe_run(
    plan: PrunePlan, budget: Budget, calibration: Mapping[str, Any], *, schedule: object = None
) -> PrunePlan:
    """The plan with what was asked for and the tokens that score it."""
    asked = asdict(budget) if schedule is None else {**asdict(budget), "schedule": str(schedule)}
    return replace(plan, budget=asked, calibration=dict(calibration))


def apply_plan(model: nn.Module, plan: PrunePlan) -> None:
    """Remove what a plan says from an unpruned copy of its model, in place.

    Structure is compared, not weights: a plan fits every fine-tuned copy of its model.

    Raises:
        PlanError: The plan was made for a model of another structure; nothing is removed then.
    """
    anatomy = find_sublayers(model)
    plan.model.require_same(anatomy.facts())
    gone: list[SublayerId] = []
    for step in plan.steps:
        # Norms that a block's sublayers share go with the second of them.
        freed = anatomy.num_freed([*gone, *step.removed.sublayers]) - anatomy.num_freed(gone)
        gone += step.removed.sublayers
        if freed != step.num_parameters:
            raise PlanError(
                f"this plan was made for another model: {step.removed.name} has {step.num_parameters} parameters "
                f"in the plan, {freed} in the model"
            )
    require_understood(model)
    remove(model, plan.removed)
    compact(model)


def _protected(names: Sequence[str], anatomy: Anatomy) -> frozenset[SublayerId]:
    protected: set[SublayerId] = set()
    for name in names:
        try:
            sublayers = Candidate.parse(name).sublayers
        except PlanError as error:
            raise LitPruneError(f"protect: {error}, or block.N for both") from error
        missing = [each for each in sublayers if each not in anatomy and each not in anatomy.removed]
        if missing:
            raise LitPruneError(
                f"protect: this model has no {missing[0]}; its blocks are 0 to {anatomy.num_blocks - 1}"
            )
        protected.update(sublayers)
    return frozenset(protected)


def _create(registry: Any, spec: Any) -> Any:
    if callable(spec):
        return spec
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in options:
        raise LitPruneError(f"a {registry.noun} needs a name; found {options}")
    return registry.create(options.pop("name"), **options)


def _described(spec: Any, made: Any) -> dict[str, Any]:
    options = asdict(made) if is_dataclass(made) and not isinstance(made, type) else {}
    if isinstance(spec, str):
        return {"name": spec, **options}
    return {**options, **spec} if isinstance(spec, Mapping) else {"name": type(spec).__qualname__, **options}


def _versions() -> dict[str, str]:
    installed = importlib.metadata.packages_distributions()
    names = {"lit_prune": "lit-prune", **{each: each for each in ("torch", "transformers", "lightning", "peft")}}
    return {name: importlib.metadata.version(name) for module, name in names.items() if module in installed}
