"""The one loop of pruning: candidates, scores, choice, removal, until enough is gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lit_prune.anatomy import Anatomy, find_sublayers, language_model
from lit_prune.costs import Prices
from lit_prune.errors import BudgetError, ModelError
from lit_prune.healing import (
    DenseTeacher,
    Solutions,
    create_compensation,
    finish,
    is_required,
    require_possible,
    wants_dense,
)
from lit_prune.measure import WhatIf
from lit_prune.plan import (
    KINDS,
    Candidate,
    PrunePlan,
    PruneStep,
    Recipe,
    Scores,
    SublayerId,
    create,
    described,
    package_versions,
    with_defaults,
)
from lit_prune.pruning.protection import protected_sublayers
from lit_prune.pruning.removal import take_out
from lit_prune.pruning.rounds import ModelRound, require_scores
from lit_prune.scorers import SCORERS, Scorer
from lit_prune.searches import SEARCHES, Budget, Quota, Search


class Pruner:
    """Prunes one model, one removal at a time, and keeps the plan.

    Args:
        model: A causal language model, perhaps wrapped by peft; changed in place.
        recipe: What decides which candidates go; the default recipe when None.
        model_name: The model's name, for the plan's readers.
        options: Fields of `Recipe` that are to be others than in the recipe, such as `scorer="ppl"`.

    Attributes:
        plan: What was removed so far; set it to resume.
        prices: What the model and its sublayers cost, in the budget's unit: parameters unless set before the first
            removal.
        protected: What must stay, by `protect` or because the scorer's method never removes it.
        num_earlier: Removals of the plan that an earlier search made, whose scores tell this one nothing.

    Raises:
        AnatomyError: The model is not understood.
        LitPruneError: A name is unknown.
        ModelError: The compensation cannot be folded into this model.
    """

    def __init__(self, model: nn.Module, recipe: Recipe | None = None, *, model_name: str = "", **options: Any) -> None:
        recipe = replace(recipe or Recipe(), **options)
        self.model = language_model(model)
        anatomy = find_sublayers(self.model)
        scorer, search = create(SCORERS, recipe.scorer), create(SEARCHES, recipe.search)
        self.scorer, self._search = with_defaults(Scorer, scorer), with_defaults(Search, search)
        self.granularity = recipe.granularity
        self.protected = protected_sublayers(recipe.protect, self.scorer, anatomy)
        self.prices = Prices.in_parameters(anatomy)
        self._compensation = create_compensation(recipe.compensate)
        self._teacher: DenseTeacher | None = None
        self.num_earlier = 0
        config = self.model.config
        name = model_name or getattr(config, "_name_or_path", "")
        self.plan = PrunePlan(
            anatomy.facts(name, getattr(config, "_commit_hash", None)),
            scorer=described(recipe.scorer, scorer),
            search=described(recipe.search, search),
            compensation=described(recipe.compensate, self._compensation) if self._compensation else {},
            versions=package_versions(),
        )
        try:
            require_possible(self._compensation, self.model)
        except ModelError as error:
            if is_required(self._compensation):
                raise
            self.leave_uncompensated(str(error))

    def leave_uncompensated(self, why: str) -> None:
        """Leave out a compensation that is not required, and write the reason into the plan."""
        if self._compensation is None or is_required(self._compensation):
            return
        self._compensation = None
        self.plan = replace(self.plan, compensation={"name": "none", "impossible": why})

    @staticmethod
    def require_known(recipe: Recipe) -> None:
        """Refuse what no pruner could be made with, before a model is loaded.

        Raises:
            LitPruneError: A scorer, search or compensation is unknown, or does not take its options.
        """
        create(SCORERS, recipe.scorer)
        create(SEARCHES, recipe.search)
        create_compensation(recipe.compensate)

    @property
    def mends(self) -> bool:
        """Whether `mend` is to be called when removals are done."""
        return wants_dense(self._compensation)

    @property
    def num_parameters(self) -> int:
        """Parameters of the model before the first removal."""
        return self.plan.model.num_parameters

    def candidates(self) -> dict[Candidate, float]:
        """What may go now, with what each would save by `prices`; what would save nothing is left alone."""
        anatomy = find_sublayers(self.model)
        sizes = {candidate: self.prices.freed(anatomy, candidate.sublayers) for candidate in self._permitted(anatomy)}
        return {candidate: size for candidate, size in sizes.items() if size > 0}

    def _permitted(self, anatomy: Anatomy) -> list[Candidate]:
        free = [sublayer for sublayer in anatomy.ids if sublayer not in self.protected]
        if self.granularity == "block":
            pairs = [tuple(SublayerId(first.block, kind) for kind in KINDS) for first in free if first.kind == KINDS[0]]
            return [Candidate(pair) for pair in pairs if all(sublayer in free for sublayer in pair)]
        kinds = KINDS if self.granularity == "sublayer" else (self.granularity,)
        return [Candidate((sublayer,)) for sublayer in free if sublayer.kind in kinds]

    @property
    def available(self) -> float:
        """What all candidates together would save."""
        return self.prices.freed(find_sublayers(self.model), Candidate.together(self.candidates()).sublayers)

    @property
    def reached(self) -> float:
        """What the removals so far have saved."""
        return self.saved(self.plan.steps)

    @property
    def so_far(self) -> tuple[float, int]:
        """What the removals so far have saved, and how many they are: what a quota asks."""
        return self.reached, len(self.plan.steps)

    def saved(self, steps: Iterable[PruneStep]) -> float:
        """What some of the removals have saved."""
        priced = self.prices.sublayers
        if priced is None:
            return sum(step.num_parameters for step in steps)
        return sum(priced[sublayer] for step in steps for sublayer in step.removed.sublayers)

    def require_reachable(self, budget: Budget) -> None:
        """Refuse a budget that the candidates cannot give, before anything is measured.

        Raises:
            BudgetError: The message says how much they can give.
        """
        what = {"sublayer": "sublayers", "block": "whole blocks"}.get(self.granularity, f"{self.granularity} sublayers")
        budget.require_reachable(self.available, what, self.reached)

    def steps(
        self,
        what_if: WhatIf,
        budget: Budget,
        quota: Quota | None = None,
        *,
        optimizers: Iterable[Optimizer] = (),
        epoch: int | None = None,
    ) -> Iterator[PruneStep]:
        """Remove one candidate after the other, as long as the quota allows and something fits the budget.

        After every removal the plan tells how far it has come.

        Args:
            what_if: The measure, over the calibration batches.
            budget: How much is to go in all, which decides among the scored candidates.
            quota: What says when this series is over; None ends it at the budget's target.
            optimizers: Optimizers of the model's parameters, which forget what is removed.
            epoch: The training epoch at whose start this happens; None outside training.

        Raises:
            MeasureError: A loss is NaN or infinite; nothing is removed then.
        """
        quota = quota or Quota(budget.target)
        self._teacher = DenseTeacher(self.model, adapted=True) if self.mends else None
        while quota.allows(*self.so_far) and self.candidates():
            step = self.step(what_if, budget, optimizers=optimizers, epoch=epoch)
            self.record_outcome(budget)
            if step is None:
                return
            yield step

    def step(
        self, what_if: WhatIf, budget: Budget, *, optimizers: Iterable[Optimizer] = (), epoch: int | None = None
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
        freed, corrections = take_out(what_if, choice, self._compensation, list(optimizers))
        step = PruneStep.recorded(
            choice, scores, num_parameters=freed, compensation=corrections, cost=what_if.cost - before, epoch=epoch
        )
        self.plan = self.plan.with_step(step)
        return step

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
            sizes = {name: sizes[name] for name in sizes if budget.allows(scores.nll.get(name, dense), dense)}
            if not sizes:
                return scores, None
            others, choice = self._choose(what_if, budget, sizes, epoch)
            scores = scores.merged(others)
        return scores, choice

    def _choose(
        self, what_if: WhatIf, budget: Budget, sizes: Mapping[Candidate, float], epoch: int | None
    ) -> tuple[Scores, Candidate]:
        # Training moves all scores: bounds on those of another epoch would say nothing.
        own = self.plan.steps[self.num_earlier :]
        history = [step for step in own if step.epoch == epoch or not self._search.within_epoch]
        remaining = budget.remaining(self.reached)
        score = ModelRound(self.scorer, what_if, self.prices, list(sizes), self.plan.steps, remaining)

        def searched(among: Sequence[Candidate]) -> Scores:
            return require_scores(self._search(score, among, history), "search", among)

        scores = searched(list(sizes))
        choice = budget.choose(scores.importance, sizes, self.reached)
        if scores.measured and scores.measured.get(choice) != 1:
            # The budget wants one of a size that a search which spares itself work has not looked at closely.
            closer = searched([candidate for candidate in sizes if sizes[candidate] == sizes[choice]])
            scores, choice = scores.merged(closer), closer.best
        return score.with_margins(scores), choice

    def mend(self, measure: Callable[[], WhatIf], solutions: Solutions | None = None) -> None:
        """Let a compensation that comes at the end change what stays, towards the model before these removals.

        Args:
            measure: Makes the measure, over the batches to fit on, which need not be those that scored.
            solutions: Keeps what was found from one run to the next.

        Raises:
            LitPruneError: The message says what it wants; nothing is changed then.
        """
        teacher, self._teacher = self._teacher, None
        if self._compensation is not None and teacher is not None and teacher.num_extra_parameters:
            what_if = measure()
            before, facts = what_if.cost, finish(self._compensation, what_if, teacher, solutions)
            facts = {**self.plan.compensation, **facts, "cost": what_if.cost - before}
            self.plan = replace(self.plan, compensation=facts)

    def record_outcome(self, budget: Budget, *, left: str | None = None) -> None:
        """Write into the plan how far it has come, in the budget's unit.

        Where the search is over, `left` is the reason if candidates are left and the amount is not reached.
        """
        target = None if budget.amount is None else budget.target
        outcome = {**self.prices.conditions, "unit": self.prices.unit, "target": target, "reached": self.reached}
        outcome["num_removals"] = len(self.plan.steps)
        if budget.max_rise is not None:
            rise = self.plan.nll_rise if self.plan.steps else 0.0
            outcome["rise"] = None if rise is None else math.expm1(rise)
        if left is not None:
            reason = left if self.candidates() else "nothing left"
            outcome["stopped_by"] = reason if budget.remaining(self.reached) else "amount"
        self.plan = replace(self.plan, budget={**self.plan.budget, **outcome})
