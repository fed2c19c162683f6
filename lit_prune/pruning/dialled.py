"""Every size between a pruned model and its dense one, without training: what went comes back, the last first.

After Boomerang distillation (arXiv 2510.05064), which puts blocks of the teacher back into a student made of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.anatomy import SANDWICH, Anatomy, Record, decoder_config, find_sublayers
from lit_prune.costs import Prices
from lit_prune.errors import BudgetError, ModelError, PlanError
from lit_prune.export.recipe import require_whole_plan
from lit_prune.healing import scale_sublayers
from lit_prune.loading.digests import weights_of
from lit_prune.plan import PrunePlan, SublayerId
from lit_prune.pruning.applied import compensate_plan
from lit_prune.pruning.fronts import prices_of
from lit_prune.surgery import compact, make_biases, output_projections, remove

REFIT = "refit"
SMALL = 1e-9
"""Of a share, what rounding may make of it."""


@dataclass(frozen=True)
class Gone:
    """What the pruned model lacks, seen from one weight that stays.

    Attributes:
        in_front: Parameters of each sublayer that lies in front of the weight, as the stream runs, and whether it is
            back.
        everywhere: The same of all that went.
    """

    in_front: tuple[tuple[int, bool], ...]
    everywhere: tuple[tuple[int, bool], ...]


Rule = Callable[[Gone], float]
"""The share of its change that a weight keeps: 1 leaves it as it is in the pruned model, 0 as in the dense one."""

Strength = Callable[[float], float]
"""What the outputs of sublayers that are back are multiplied by, by the share that is back of all that went."""


def share_gone(gone: Gone) -> float:
    """The share of what went that is still gone, in parameters."""
    whole = sum(size for size, _ in gone.everywhere)
    return sum(size for size, is_back in gone.everywhere if not is_back) / whole if whole else 0.0


@torch.no_grad()
def dial(
    pruned: PreTrainedModel,
    dense: PreTrainedModel,
    plan: PrunePlan,
    *,
    amount: float | None = None,
    num_steps: int | None = None,
    batches: Iterable[Mapping[str, Any]] | None = None,
    before: PreTrainedModel | None = None,
    calibration: Mapping[str, Any] | None = None,
    progress: bool = False,
    rule: Rule = share_gone,
    strength: Strength = math.sqrt,
) -> PrunePlan:
    """Make of the dense model one of a size between it and the pruned one, in place and without training.

    What went comes back, the last removal first, until no more than the amount is gone. With text, the removals that
    are left are refitted as if there had been no others, and what healing has changed since the refit of the pruned
    model is added by the share that is still gone. Without text, weights that were refitted or healed lie between the
    two models by that share; they make up for what comes back, so that it counts little at first.

    Args:
        pruned: The pruned model, refitted or healed; it stays as it is.
        dense: The dense model that it was made of, in the same type, on any device.
        plan: The plan of all that is gone from it.
        amount: The largest share of the model's cost that is gone, in the unit of the plan, from 0.
        num_steps: Instead, the number of removals that are left.
        batches: Text to refit on, batches as for `prune`.
        before: With text, the refitted model that was healed; None refits the whole plan on the text again, which is
            that model where it is the same text, and takes twice the passes.
        calibration: Facts about the origin of the batches, in plain types, for the plan's readers.
        progress: Whether a refit shows a progress bar.
        rule: How much of its change a weight keeps.
        strength: Without text, what the outputs of sublayers that are back are multiplied by, folded into their last
            layer, of the share of the removed parameters that is back; experts, which end in no single layer, come
            back whole.

    Returns:
        The plan of the model between.

    Raises:
        BudgetError: Neither or both of the sizes are given, one is negative, or the pruned model is larger than that.
        ModelError: The dense model is another one's, or in another type, or a refit is not possible in it.
        PlanError: The plan is another model's.
    """
    require_whole_plan(pruned, plan)
    if before is not None:
        require_whole_plan(before, plan)
    anatomy = find_sublayers(dense)
    _require_dense(anatomy, plan, pruned, dense)
    kept = _front(plan, dense, amount, num_steps)
    staying = {sublayer for step in kept.steps for sublayer in step.removed.sublayers}
    share_of = _shares(anatomy, plan.removed, staying, rule)
    if batches is not None and 0 < len(kept.steps) < len(plan.steps):  # else it is one of the two models
        batches = list(batches)
        if before is None:
            before = copy.deepcopy(dense)
            compensate_plan(before, plan, batches, REFIT, progress=progress)
        kept = compensate_plan(dense, kept, batches, REFIT, calibration=calibration, progress=progress)
        _add_changes(dense, pruned, before, share_of)
        return kept
    changed = dict(_by_original_names(pruned))
    remove(dense, kept.removed)
    if staying:  # the dense model itself has no biases that were added
        make_biases(dense, Record.of(decoder_config(pruned)).biases)
    _mix(dense, changed, share_of)
    if 0 < len(kept.steps) < len(plan.steps):
        share_back = 1 - anatomy.num_freed(kept.removed) / anatomy.num_freed(plan.removed)
        restored = [anatomy[each] for each in plan.removed if each not in staying]
        projections = output_projections(dense)
        scalable = [each for each in restored if each.form == SANDWICH or each.id in projections]
        scale_sublayers(dense, scalable, strength(share_back), projections)
    compact(dense)
    return kept


def _require_dense(anatomy: Anatomy, plan: PrunePlan, pruned: PreTrainedModel, dense: PreTrainedModel) -> None:
    plan.model.require_same(anatomy.facts())
    if anatomy.removed:
        raise PlanError(f"the dense model has lost {len(anatomy.removed)} sublayers itself; give the model before that")
    if dense.dtype != pruned.dtype:
        raise ModelError(f"the pruned model is in {pruned.dtype}, the dense one in {dense.dtype}; load both alike")


def _front(plan: PrunePlan, dense: PreTrainedModel, amount: float | None, num_steps: int | None) -> PrunePlan:
    """The plan's first removals, as many as are left."""
    if (amount is None) == (num_steps is None):
        raise BudgetError("say how large: either an amount that may be gone, or a number of removals")
    anatomy = find_sublayers(dense)
    prices = Prices.in_parameters(anatomy) if amount is None else prices_of(plan, dense)
    gone = accumulate((list(step.removed.sublayers) for step in plan.steps), initial=list[SublayerId]())
    reached = [prices.freed(anatomy, sublayers) for sublayers in gone]
    if num_steps is None:
        num_steps = _num_under(amount, [part / prices.total for part in reached])
    if not 0 <= num_steps <= len(plan.steps):
        raise BudgetError(f"the plan has {len(plan.steps)} removals; {num_steps} of them cannot be left")
    asked = {"of": prices.of, "unit": prices.unit, "total": prices.total, "amount": amount}
    budget = {**asked, "reached": reached[num_steps], "num_removals": num_steps}
    mends = plan.asked_compensation
    return replace(plan, steps=plan.steps[:num_steps], budget=budget, compensation=mends, unseen={}, healing={})


def _num_under(amount: float | None, reached: Sequence[float]) -> int:
    """How many removals leave no more than a share gone, by the shares that are gone after each, from 0."""
    if amount is None or not 0 <= amount < 1:
        raise BudgetError(f"an amount is a share from 0 to below 1; found {amount}")
    if amount > reached[-1] + SMALL:
        raise BudgetError(f"{reached[-1]:.1%} are gone from the pruned model, not {amount:.1%}; prune more")
    return sum(share <= amount + SMALL for share in reached[1:])


def _by_original_names(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Weights by the names that they have in the dense model, whatever blocks were closed up."""
    anatomy = find_sublayers(model)
    prefix = f"{anatomy.blocks_path}."
    for name, values in weights_of(model):
        if name.startswith(prefix):
            position, _, rest = name.removeprefix(prefix).partition(".")
            name = f"{prefix}{anatomy.blocks[int(position)]}.{rest}"
        if values.numel():  # what is gone has left empty tensors
            yield name, values


def _shares(
    anatomy: Anatomy, removed: Sequence[SublayerId], staying: Container[SublayerId], rule: Rule
) -> Callable[[str], float]:
    """What the rule says of a weight by its name in the dense model."""
    order = list(anatomy.ids)  # as the stream runs
    facts = {order.index(each): (anatomy.num_freed([each]), each not in staying) for each in removed}
    went = sorted(facts.items())
    places = {part.path: place for place, sublayer in enumerate(order) for part in anatomy.parts([sublayer])}

    def share_of(name: str) -> float:
        path = next((path for path in places if name.startswith(f"{path}.")), None)
        place = len(order) if path is None else places[path]
        return rule(Gone(tuple(fact for number, fact in went if number < place), tuple(fact for _, fact in went)))

    return share_of


def _add_changes(
    model: PreTrainedModel, healed: PreTrainedModel, refitted: PreTrainedModel, share_of: Callable[[str], float]
) -> None:
    """Add what healing has made other than the refit had left it, of weights that all three models have."""
    after, before = dict(_by_original_names(healed)), dict(_by_original_names(refitted))
    for name, own in _by_original_names(model):
        if name in after and name in before and own.is_floating_point():
            new, old = (found[name].to(own.device).float() for found in (after, before))
            own.copy_(own.float() + share_of(name) * (new - old))


def _mix(dense: PreTrainedModel, changed: Mapping[str, Tensor], share_of: Callable[[str], float]) -> None:
    for name, own in weights_of(dense):
        if (new := changed.get(name)) is None or not own.is_floating_point():
            continue
        if new.shape != own.shape:
            raise ModelError(f"the dense model is not that of the pruned one: {name} has another shape there")
        share = share_of(name)
        if share == 1:
            own.copy_(new)
        elif share and not torch.equal(new.to(own.device), own):
            own.copy_(torch.lerp(own.float(), new.to(own.device).float(), share))
