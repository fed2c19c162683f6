"""Refit: every output projection behind the first removal, solved anew towards the dense model's residual stream.

Front to back, each for what the pruned model reads by then; no gradient, one pass. From each projection only second
moments are kept.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import AFTER_BRANCH, POST_NORM, SANDWICH, find_sublayers
from lit_prune.errors import DataError, MeasureError, ModelError
from lit_prune.healing.block_stream import residual_scales
from lit_prune.healing.compensation import COMPENSATIONS, Compensation
from lit_prune.healing.expert_fit import expert_fit
from lit_prune.healing.fits import Fit, GainFit, NormedProjectionFit, ProjectionFit, rms_gain
from lit_prune.healing.folding import base_layer, is_quantised
from lit_prune.healing.lockstep import Lockstep
from lit_prune.healing.regression import HELD_BACK, Moments
from lit_prune.healing.sites import Site
from lit_prune.healing.solutions import Found, Solutions
from lit_prune.healing.teacher import DenseTeacher
from lit_prune.loading.processes import Processes
from lit_prune.measure import WhatIf
from lit_prune.plan import SublayerId
from lit_prune.surgery import output_projections

JOINT = "#"
"""Between the name of a fit and the number of a problem of it, where solutions are kept."""


@COMPENSATIONS.register("refit")
@dataclass(frozen=True)
class Refit(Compensation):
    """Every output projection behind the first removal solved anew, front to back, towards the dense residual stream.

    For a projection W that reads a in the pruned model as it is by then, W + D with the least sum over tokens of
    w |h* - h - D a|² + r |D|²: h is the pruned stream behind it, h* the dense one behind all that writes before the
    next sublayer that stays, and w = 1 / |h*|², as norms see directions. So what was removed right behind a projection
    is made up for by it, and every later one mends what is left (the objective of SPRINT, arXiv 2506.03510, for every
    sublayer and towards the model before any removal). The first token of a sequence does not count. A layer with a
    bias has it fitted too. Parallel sublayers are solved together. Where a norm stands between projection and stream,
    the projection is solved for as if the norm went on dividing each token by the same number, then the norm's gain.

    Experts whose weights are in one tensor are solved for each on the tokens that are routed to it, where these are as
    many as its inputs. Left as they are: other sublayers that do not end in one linear layer, quantised layers, and
    weights that several layers share.

    Args:
        required: Whether a model that it is not possible for is refused; else such a model is left as it is.
        ridges: The strengths r to choose from, relative to the mean square of the inputs. The one with the least error
            on about every fourth sequence, which is held back for it, is taken: from the middle on, neighbours are
            tried as long as one is better. Where none is better than nothing, nothing is changed.
    """

    wants_dense = True
    required: bool = True
    ridges: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

    def require_possible(self, model: nn.Module) -> None:
        """Refuse a model whose weights are not at hand, or whose stream does not add up.

        Raises:
            ModelError: The message gives the reason.
        """
        anatomy = find_sublayers(model)
        if any(sublayer.form == POST_NORM for sublayer in anatomy.sublayers):
            raise ModelError(
                f"refit is not possible in this {anatomy.model_type} model: its norms act on the residual stream itself"
            )
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ModelError("refit changes weights, and some of the model's are offloaded; load it without that")
        residual_scales(model, anatomy)

    def finish(self, what_if: WhatIf, teacher: DenseTeacher, solutions: Solutions | None = None) -> dict[str, Any]:
        """Solve for every projection, on the batches of the measure; the plan gets what was `refitted` and `left`.

        Of each site `refitted` has the `ridge`, None where nothing was changed (of experts how many took each), and the
        squared distance to the dense stream as a share of its square on the sequences that were held back, `before` and
        `after`; of experts the second is an estimate.

        Raises:
            DataError: There are too few sequences to hold some back.
            MeasureError: What the model computes is not finite.
        """
        refitted: dict[str, Any] = {}
        left: dict[str, str] = {}
        solutions = solutions or Solutions()
        with what_if.running():
            lockstep = Lockstep(what_if, teacher)
            if lockstep.sites and lockstep.num_sequences < HELD_BACK:
                few = f"refit holds back one sequence of {HELD_BACK}, and there are {lockstep.num_sequences}; give more"
                if self.required:
                    raise DataError(few)
                return {"name": "none", "impossible": few}
            projections = output_projections(what_if.model)
            for site in lockstep.sites:
                fits, kept = self._fits(what_if.model, site, projections)
                left |= kept
                if not fits:
                    continue
                if (found := solutions.known(site.name)) is None:
                    found = self._solved(lockstep, site, fits, what_if.processes)
                    solutions.put(site.name, found)
                else:
                    lockstep.pass_by(site)
                    for name, solution in found[1].items():
                        of, _, number = name.rpartition(JOINT)
                        fits[of].apply(int(number), solution)
                refitted |= found[0]
        what_if.corrected()
        return {"refitted": refitted, **({"left": left} if left else {})}

    def _fits(
        self, model: Any, site: Site, projections: Mapping[SublayerId, str]
    ) -> tuple[dict[str, Fit], dict[str, str]]:
        """What is fitted at a site, one after the other by name, and why some of its sublayers are left."""
        (first, *_), left = site.sublayers, {}
        modules: dict[str, nn.Module] = {}
        for sublayer in site.sublayers:
            path = projections.get(sublayer.id, "")
            if why := _unchangeable(model, path):
                left[str(sublayer.id)] = why
            else:
                modules[path] = model.get_submodule(path)
        if first.form not in (SANDWICH, AFTER_BRANCH):
            if not modules and len(site.sublayers) == 1 and (experts := expert_fit(model, first)) is not None:
                return {site.name: experts}, {}
            return {site.name: ProjectionFit(modules)} if modules else {}, left
        norm = model.get_submodule(first.output)
        gain = GainFit(first.output, norm)
        found = rms_gain(norm, model.config.get_text_config(decoder=True).hidden_size)
        if not modules or found is None:
            return {f"{site.name} (norm)": gain}, left
        return {site.name: NormedProjectionFit(*next(iter(modules.items())), found), f"{site.name} (norm)": gain}, left

    def _solved(self, lockstep: Lockstep, site: Site, fits: Mapping[str, Fit], processes: Processes) -> Found:
        """Solve for each fit of a site and apply it, one after the other."""
        facts: dict[str, Any] = {}
        solutions: dict[str, Tensor] = {}
        for number, (name, fit) in enumerate(fits.items(), start=1):
            problems, before = self._sums(lockstep, site, fit, processes, again=number < len(fits))
            if not math.isfinite(before):
                raise MeasureError(f"what the model computes at {name} is not finite: check its weights and dtype")
            best = {each: self._best(*sums, fit) for each, sums in problems.items()}
            for each, (ridge, _) in best.items():
                if ridge is not None:
                    fitted, checked = problems[each]
                    solutions[f"{name}{JOINT}{each}"] = solution = (fitted + checked).solved(ridge, fit.free)
                    fit.apply(each, solution)
            totals = {each: float(checked.total) for each, (_, checked) in problems.items()}
            gained = sum(gain * totals[each] for each, (_, gain) in best.items()) / (sum(totals.values()) or 1.0)
            ridges = [ridge for ridge, _ in best.values()]
            facts[name] = {"ridge": ridges[0] if len(ridges) == 1 else _counted(ridges), "before": before}
            facts[name]["after"] = before * (1 - gained)
        return facts, solutions

    def _best(self, fitted: Moments, checked: Moments, fit: Fit) -> tuple[float | None, float]:
        """The ridge, and the share of what is missing that it gives; None and 0 where none helps."""
        if not float(fitted.count) >= fit.least * len(fitted.inputs):
            return None, 0.0
        ridges = sorted(self.ridges)
        share = cache(lambda place: checked.explained(fitted.solved(ridges[place], fit.free)))
        best, place = -1, len(ridges) // 2
        while best != place:
            best = place
            place = max(range(max(0, best - 1), min(len(ridges), best + 2)), key=share)
        return (ridges[best], share(best)) if share(best) > 0 else (None, 0.0)

    def _sums(
        self, lockstep: Lockstep, site: Site, fit: Fit, processes: Processes, *, again: bool
    ) -> tuple[dict[int, tuple[Moments, Moments]], float]:
        """Moments of each problem, of what is fitted and what is held back; and what is missing of the dense stream."""
        scale = lockstep.scales[site.point.position]
        sums: dict[int, tuple[Moments, Moments]] = defaultdict(lambda: (fit.moments(), fit.moments()))
        missed, dense = torch.zeros(()), torch.zeros(())
        for seen in lockstep.observed(site, fit.watched, again=again):
            missing = seen.target - seen.stream
            weights = 1 / seen.target.square().mean(dim=-1).clamp(min=torch.finfo(torch.float32).eps)
            for number, terms in fit.terms(seen, missing / scale, weights).items():
                for moments, chosen in zip(sums[number], (~terms.held_back, terms.held_back), strict=True):
                    moments.add(terms.inputs[chosen], terms.outputs[chosen], terms.weights[chosen])
            missed = missed + (weights[:, None] * missing.square())[seen.held_back].sum().cpu()
            dense = dense + (weights[:, None] * seen.target.square())[seen.held_back].sum().cpu()
        summed = {
            number: (pair[0].mapped(processes.sum), pair[1].mapped(processes.sum)) for number, pair in sums.items()
        }
        return summed, float(processes.sum(missed) / processes.sum(dense))


def _counted(ridges: Sequence[float | None]) -> dict[str, int]:
    """How often each ridge was taken, by its name; problems that were left are not counted."""
    return {f"{ridge:g}": ridges.count(ridge) for ridge in sorted(ridge for ridge in {*ridges} if ridge is not None)}


def _unchangeable(model: nn.Module, path: str) -> str | None:
    """Why a projection must stay as it is; None where it need not."""
    if not path:
        return "not one linear layer"
    weight = base_layer(model.get_submodule(path)).weight
    if is_quantised(weight):
        return "quantised"
    holders = sum(weight is other for _, other in model.named_parameters(remove_duplicate=False))
    return "shared by several layers" if holders > 1 else None
