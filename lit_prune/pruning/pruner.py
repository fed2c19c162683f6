"""The one loop body of pruning, shared by the callback and the command line: candidates, scores, choice, removal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lit_prune.anatomy import Anatomy, find_sublayers, language_model
from lit_prune.costs import Prices
from lit_prune.errors import BudgetError, LitPruneError
from lit_prune.healing import Compensation, correct, create_compensation, require_possible
from lit_prune.measure import WhatIf
from lit_prune.plan import Named, PrunePlan, PruneStep, create, described, package_versions, with_defaults
from lit_prune.plan.prune_plan import KINDS, Candidate, Scores, SublayerId
from lit_prune.pruning.protection import protected_by_name, protected_by_scorer
from lit_prune.pruning.rounds import ModelRound, require_scores
from lit_prune.scorers import SCORERS, Scorer
from lit_prune.searches import SEARCHES, Budget, Quota, Search
from lit_prune.surgery import remove

GRANULARITIES = ("sublayer", "attention", "mlp", "block")


class Pruner:
    """Prunes one model, one removal at a time, and keeps the plan.

    Args:
        model: A causal language model, perhaps wrapped by peft; changed in place.
        scorer: A registered name, a mapping `{name: nri, baseline: original}`, an import path, or a `Scorer`.
        search: The same for a `Search`.
        granularity: What goes at a time: a `sublayer` of either kind, `attention` only, `mlp` only, a whole `block`.
        protect: What must stay: `attention.0`, `mlp.3`, `block.2`, `first` and `last` for the blocks at the ends.
        compensate: `none`, or what makes up for each removal in weights that stay: `scale`, `bias`, `linear`, a mapping
            with options, an import path, or a `Compensation`.
        model_name: For the plan's readers.

    Attributes:
        plan: What was removed so far; set it to resume.
        prices: What the model and its sublayers cost, in the budget's unit: parameters unless set before the first
            removal.
        scorer: What says how important a candidate is.
        protected: What must stay, by `protect` or because the scorer's method never removes it.

    Raises:
        AnatomyError: The model is not understood.
        LitPruneError: A name is unknown.
        ModelError: The compensation cannot be folded into this model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scorer: Named | Callable[..., Scores] = "nri",
        search: Named | Callable[..., Scores] = "progressive",
        granularity: str = "sublayer",
        protect: Sequence[str] = (),
        compensate: Named | Compensation = "none",
        model_name: str = "",
    ) -> None:
        if granularity not in GRANULARITIES:
            raise LitPruneError(f"granularity must be one of {', '.join(GRANULARITIES)}; found {granularity!r}")
        self.model = language_model(model)
        anatomy = find_sublayers(self.model)
        self.granularity = granularity
        own_scorer, own_search = create(SCORERS, scorer), create(SEARCHES, search)
        self.scorer = with_defaults(Scorer, own_scorer)
        self._search = with_defaults(Search, own_search)
        self.protected = protected_by_name(protect, anatomy) | protected_by_scorer(self.scorer, anatomy)
        self.prices = Prices.in_parameters(anatomy)
        self._compensation = create_compensation(compensate)
        if self._compensation is not None:
            require_possible(self._compensation, self.model)
        self.plan = PrunePlan(
            anatomy.facts(
                model_name or getattr(self.model.config, "_name_or_path", ""),
                getattr(self.model.config, "_commit_hash", None),
            ),
            scorer=described(scorer, own_scorer),
            search=described(search, own_search),
            compensation=described(compensate, self._compensation) if self._compensation else {},
            versions=package_versions(),
        )

    @staticmethod
    def require_known(scorer: Named, search: Named, compensate: Named = "none") -> None:
        """Refuse what no pruner could be made with, before a model is loaded.

        Raises:
            LitPruneError: A scorer, search or compensation is unknown, or does not take its options.
        """
        create(SCORERS, scorer)
        create(SEARCHES, search)
        create_compensation(compensate)

    @property
    def num_parameters(self) -> int:
        """Parameters of the model before the first removal."""
        return self.plan.model.num_parameters

    def candidates(self) -> dict[Candidate, float]:
        """What may go now, with what each would save by `prices`; what would save nothing is left alone."""
        return self._candidates(find_sublayers(self.model))

    def _candidates(self, anatomy: Anatomy) -> dict[Candidate, float]:
        sizes = {each: self.prices.freed(anatomy, each.sublayers) for each in self._permitted(anatomy)}
        return {each: size for each, size in sizes.items() if size > 0}

    def _permitted(self, anatomy: Anatomy) -> list[Candidate]:
        free = [each.id for each in anatomy.sublayers if each.id not in self.protected]
        if self.granularity == "block":
            pairs = [tuple(SublayerId(each.block, kind) for kind in KINDS) for each in free if each.kind == KINDS[0]]
            return [Candidate(pair) for pair in pairs if all(each in free for each in pair)]
        kinds = KINDS if self.granularity == "sublayer" else (self.granularity,)
        return [Candidate((each,)) for each in free if each.kind in kinds]

    @property
    def available(self) -> float:
        """What all candidates together would save."""
        anatomy = find_sublayers(self.model)
        return self.prices.freed(anatomy, [each for one in self._candidates(anatomy) for each in one.sublayers])

    @property
    def reached(self) -> float:
        """What the removals so far have saved."""
        return self.saved(self.plan.steps)

    def saved(self, steps: Iterable[PruneStep]) -> float:
        """What some of the removals have saved."""
        priced = self.prices.sublayers
        if priced is None:
            return sum(step.num_parameters for step in steps)
        return sum(priced[each] for step in steps for each in step.removed.sublayers)

    def require_reachable(self, budget: Budget) -> None:
        """Refuse a budget that the candidates cannot give, before anything is measured.

        Raises:
            BudgetError: With what they can give.
        """
        what = {"sublayer": "sublayers", "block": "whole blocks"}.get(self.granularity, f"{self.granularity} sublayers")
        budget.require_reachable(self.available, what, self.reached)

    def steps(
        self,
        what_if: WhatIf,
        budget: Budget,
        quota: Quota | None = None,
        *,
        num_done: int = 0,
        optimizers: Iterable[Optimizer] = (),
        epoch: int | None = None,
    ) -> Iterator[PruneStep]:
        """Remove one candidate after the other, as long as the quota allows; the plan tells how far it has come.

        Args:
            what_if: The measure, over the calibration batches.
            budget: Chooses among the scored.
            quota: Where this series ends; None is at the budget's target.
            num_done: Removals that the quota has seen before.
            optimizers: They forget what is removed.
            epoch: Training epoch at whose start this happens.

        Raises:
            MeasureError: A loss is NaN or infinite; nothing is removed then.
        """
        quota = quota or budget.quota
        while quota.allows(self.reached, num_done) and self.candidates():
            step = self.step(what_if, budget, optimizers=optimizers, epoch=epoch)
            self.record_outcome(budget)
            if step is None:
                return
            num_done += 1
            yield step

    def step(
        self,
        what_if: WhatIf,
        budget: Budget,
        *,
        optimizers: Iterable[Optimizer] = (),
        epoch: int | None = None,
    ) -> PruneStep | None:
        """Score, choose, remove, record: one removal, or None where every one would exceed the budget's `max_rise`.

        Arguments are those of `steps`; the budget's target is not checked.

        Raises:
            BudgetError: Nothing is left to remove.
            MeasureError: A loss is NaN or infinite; nothing is removed then.
        """
        sizes = self.candidates()
        if not sizes:
            raise BudgetError("there is nothing left that may be removed")
        before = what_if.cost
        scores, chosen = self._choose_under_ceiling(what_if, budget, sizes, epoch)
        if chosen is None:
            return None
        choice = Candidate.parse(what_if.processes.agree(chosen.name))
        freed, corrections = self._remove(what_if, choice, list(optimizers))
        step = PruneStep.recorded(
            choice,
            scores,
            num_parameters=freed,
            compensation=corrections,
            cost=what_if.cost - before,
            epoch=epoch,
        )
        self.plan = self.plan.with_step(step)
        return step

    def _remove(
        self, what_if: WhatIf, choice: Candidate, optimizers: Sequence[Optimizer]
    ) -> tuple[int, dict[str, Any]]:
        if self._compensation is None:
            return remove(self.model, choice.sublayers, optimizers), {}
        freed, corrections = 0, {}
        # One by one, so that each is made up for in the model without those before it.
        for each in choice.sublayers:
            corrections[str(each)] = correct(self._compensation, what_if, each)
            freed += remove(self.model, [each], optimizers)
            what_if.corrected()
        return freed, corrections

    def record_outcome(self, budget: Budget, *, left: str | None = None) -> None:
        """Write into the plan how far it has come, in the budget's unit.

        Args:
            budget: What was asked for.
            left: Once the search is over: why, where candidates are left and the amount is not reached.
        """
        target = None if budget.amount is None else budget.target
        outcome = {**self.prices.conditions, "unit": self.prices.unit, "target": target, "reached": self.reached}
        outcome["num_removals"] = len(self.plan.steps)
        if budget.max_rise is not None:
            steps = self.plan.steps
            first, last = (steps[0].nll_before, steps[-1].nll_after) if steps else (0.0, 0.0)
            outcome["rise"] = math.expm1(last - first) if first is not None and last is not None else None
        if left is not None:
            reason = left if self.candidates() else "nothing left"
            outcome["stopped_by"] = reason if budget.remaining(self.reached) else "amount"
        self.plan = replace(self.plan, budget={**self.plan.budget, **outcome})

    def _choose_under_ceiling(
        self, what_if: WhatIf, budget: Budget, sizes: Mapping[Candidate, float], epoch: int | None
    ) -> tuple[Scores, Candidate | None]:
        scores, choice = self._choose(what_if, budget, sizes, epoch)
        while budget.max_rise is not None:
            # Known already, where the search measured it on all tokens.
            losses = what_if.losses([choice])
            scores = replace(scores, base_nll=losses.base, nll={**scores.nll, **losses.without})
            first = self.plan.steps[0].nll_before if self.plan.steps else None
            dense = losses.base if first is None else first
            if budget.allows(scores.nll[choice], dense):
                break
            sizes = {each: sizes[each] for each in sizes if budget.allows(scores.nll.get(each, dense), dense)}
            if not sizes:
                return scores, None
            others, choice = self._choose(what_if, budget, sizes, epoch)
            scores = _merged(scores, others)
        return scores, choice

    def _choose(
        self, what_if: WhatIf, budget: Budget, sizes: Mapping[Candidate, float], epoch: int | None
    ) -> tuple[Scores, Candidate]:
        # Training moves all scores: bounds on those of another epoch would say nothing.
        history = [step for step in self.plan.steps if step.epoch == epoch or not self._search.within_epoch]
        score = ModelRound(
            self.model, self.scorer, what_if, self.prices, sizes, self.plan.steps, budget.remaining(self.reached)
        )
        scores = require_scores(self._search(score, list(sizes), history), "search", list(sizes))
        choice = budget.choose(scores.importance, sizes, self.reached)
        if not scores.measured or scores.measured.get(choice) == 1:
            return scores, choice
        # The budget wants one of a size that a search which spares itself work has not looked at closely.
        among = [each for each in sizes if sizes[each] == sizes[choice]]
        closer = require_scores(self._search(score, among, history), "search", among)
        return _merged(scores, closer), min(closer.importance, key=lambda each: (closer.importance[each], each))


def describe_run(
    plan: PrunePlan, budget: Budget, calibration: Mapping[str, Any], *, schedule: object = None
) -> PrunePlan:
    """The plan with what was asked for and the tokens that score it."""
    asked = asdict(budget) if schedule is None else {**asdict(budget), "schedule": str(schedule)}
    return replace(plan, budget=asked, calibration=dict(calibration))


def _merged(scores: Scores, later: Scores) -> Scores:
    names = ("importance", "nll", "measured", "screened", "errors")
    merged: dict[str, Any] = {name: {**getattr(scores, name), **getattr(later, name)} for name in names}
    return replace(scores, **merged, disturbed=scores.disturbed or later.disturbed)
