"""`lit-prune apply`: a plan that was made before, applied to a copy of its model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lit_prune.commands.arguments import call
from lit_prune.commands.options import Loading, Mixture
from lit_prune.commands.outcomes import removed_in_words, say_next, what_next
from lit_prune.errors import LitPruneError
from lit_prune.files import say
from lit_prune.plan import PrunePlan

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lit_prune.export import Recipe

REFIT = "refit"
BYTES_OF_A_WEIGHT, MARGIN = 4, 1 << 20
MIXTURE, LOADING = Mixture(), Loading()


def apply_to_model(
    plan: str,
    model: str,
    *,
    output: str,
    amount: float | None = None,
    steps: int | None = None,
    max_rise: float | None = None,
    uncompensated: bool = False,
    compensate: str | dict[str, Any] | None = None,
    text: Mixture = MIXTURE,
    loading: Loading = LOADING,
    layout: str | None = None,
) -> None:
    """Remove what a plan says from an unpruned copy of its model, and save it.

    Of a recipe (export --format recipe) the model is rebuilt that it was made of, refitted and healed, to the last bit,
    unless an option below asks for another one. Nothing is measured then.

    With a compensation, its weights are measured anew, on far more text than a search can look at: refit takes some
    four passes over it, the others one for each removal. Without one, the model stays on the CPU unless a device is
    named.

    Args:
        plan: A prune_plan.json, a folder that holds one, perhaps a recipe, or the address of either - https://… or
            hf://owner/name on the Hub; or a config.json with block_configs, as Puzzletron writes it.
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        output: Folder for the pruned model; it must not exist, or be empty.
        amount: Only the first removals of the plan, up to this share of the model (in the plan's unit); the last is the
            one with which a search for this amount would have ended.
        steps: Only so many of its removals.
        max_rise: Only those that keep the rise of perplexity on the search's text under this, such as 0.05.
        uncompensated: Remove alone, where the plan was made with a compensation.
        compensate: What makes up for removals in weights that stay - refit, scale, linear or bias, or none; options as
            YAML. By default refit where the plan was made with it, and the factors of the plan where it has some.
        text: The text that a compensation is measured on.
        loading: How the model is loaded.
        layout: YAML or JSON file that describes blocks which are not understood; the reference page of architectures
            has its fields.
    """
    from lit_prune.export import CHANGES_FILE, recipe_of, require_empty, save
    from lit_prune.loading.fetched import local_plan

    require_empty(output)
    text.require_possible()
    if compensate in ("none", {"name": "none"}):  # as prune takes it
        compensate, uncompensated = None, True
    if compensate is not None and uncompensated:
        raise LitPruneError("uncompensated removes alone; leave it or compensate out")
    limits = {"amount": amount, "num_steps": steps, "max_rise": max_rise}
    limits = {name: value for name, value in limits.items() if value is not None}
    with local_plan(plan, CHANGES_FILE, partial(_most_bytes, model, loading)) as place:
        found, tokenizer = _plan_at(place, model, loading, layout), loading.tokenizer(model)
        recipe = None if limits or uncompensated or compensate else recipe_of(place)
        if recipe is not None:
            network, found = _rebuilt(place, recipe, model, loading, layout)
        else:
            mends = None if uncompensated else compensate or _own(found)
            network, found = _pruned(found, model, limits, mends, uncompensated, text, tokenizer, loading, layout)
    if model != found.model.name:  # which heal takes for the dense model
        found = replace(found, model=replace(found.model, name=model, revision=None))
    folder = save(network, output, tokenizer=tokenizer, plan=found)
    say("\n".join([*removed_in_words(found), *_mended(found, recipe, uncompensated), f"written: {folder}"]))
    say_next(what_next(output, model))


run = partial(call, apply_to_model)


def _plan_at(place: str, model: str, loading: Loading, layout: str | None) -> PrunePlan:
    from lit_prune.export import plan_of_config
    from lit_prune.loading.models import skeleton

    bare = partial(skeleton, model, layout=layout, trust_remote_code=loading.trust_remote_code)
    return plan_of_config(place, bare) or PrunePlan.load(place)


def _own(plan: PrunePlan) -> dict[str, Any] | None:
    """The plan's own compensation, where its weights are not in the plan."""
    return plan.asked_compensation if plan.compensation.get("name") == REFIT else None


def _pruned(
    plan: PrunePlan,
    model: str,
    limits: dict[str, Any],
    mends: str | dict[str, Any] | None,
    uncompensated: bool,
    text: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    loading: Loading,
    layout: str | None,
) -> tuple[PreTrainedModel, PrunePlan]:
    """The dense model without what the plan says, and with what makes up for it."""
    from lit_prune.healing import create_compensation
    from lit_prune.pruning import apply_plan, compensate_plan, front_of

    create_compensation("none" if mends is None else mends)  # before the model is loaded
    network = (loading.on_the_cpu if mends is None else loading).model(model, layout)
    if limits:
        plan = front_of(plan, network, **limits)
    if mends is None:
        return network, apply_plan(network, plan, uncompensated=uncompensated)
    batches = text.batches(tokenizer, network.config, lambda: network)
    return network, compensate_plan(network, plan, batches, mends, calibration=text.recorded, progress=True)


def _rebuilt(
    place: str, recipe: Recipe, model: str, loading: Loading, layout: str | None
) -> tuple[PreTrainedModel, PrunePlan]:
    """The model of a recipe, and its plan."""
    from lit_prune.export import rebuild

    if loading.dtype not in ("auto", recipe.dtype):
        raise LitPruneError(f"the recipe is of a model in {recipe.dtype}, not in {loading.dtype}; leave dtype out")
    network = replace(loading.on_the_cpu, dtype=recipe.dtype).model(model, layout)
    return network, rebuild(network, place)


def _most_bytes(model: str, loading: Loading) -> int:
    """The most that a file of changes may have: every weight of the model changed, in the widest type."""
    from lit_prune.anatomy import find_sublayers
    from lit_prune.loading.models import skeleton

    network = skeleton(model, trust_remote_code=loading.trust_remote_code)
    return find_sublayers(network).num_parameters * BYTES_OF_A_WEIGHT + MARGIN


def _mended(plan: PrunePlan, recipe: Recipe | None, uncompensated: bool) -> list[str]:
    from lit_prune.report import made_up_for

    if recipe is not None:
        return [f"rebuilt to the last bit: the SHA-256 of the weights is {recipe.rebuilt}"]
    return [made_up_for(plan)] if plan.compensation and not uncompensated else []
