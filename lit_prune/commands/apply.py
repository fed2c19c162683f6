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

REFIT = "refit"
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

    With a compensation, its weights are measured anew, on far more text than a search can look at: refit takes some
    four passes over it, the others one for each removal. Without one, the model stays on the CPU unless a device is
    named.

    Args:
        plan: A prune_plan.json, or a folder that holds one.
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
        layout: YAML or JSON file that describes blocks which are not understood: see docs/reference/architectures.md.
    """
    from lit_prune.export import require_empty, save
    from lit_prune.healing import create_compensation
    from lit_prune.pruning import apply_plan, compensate_plan, front_of
    from lit_prune.report import made_up_for

    require_empty(output)
    text.require_possible()
    found = PrunePlan.load(plan)
    if compensate in ("none", {"name": "none"}):  # as prune takes it
        compensate, uncompensated = None, True
    if compensate is not None and uncompensated:
        raise LitPruneError("uncompensated removes alone; leave it or compensate out")
    if compensate is None and not uncompensated and found.compensation.get("name") == REFIT:
        compensate = found.asked_compensation
    create_compensation("none" if compensate is None else compensate)  # before the model is loaded
    tokenizer = loading.tokenizer(model)
    if compensate is None:
        loading = replace(loading, device=loading.device or "cpu")
    network = loading.model(model, layout)
    if (amount, steps, max_rise) != (None, None, None):
        found = front_of(found, network, amount=amount, num_steps=steps, max_rise=max_rise)
    if compensate is None:
        found = apply_plan(network, found, uncompensated=uncompensated)
    else:
        batches = text.batches(tokenizer, network.config, lambda: network)
        source = {"source": ", ".join(text.texts), "window": text.window}
        found = compensate_plan(network, found, batches, compensate, calibration=source, progress=True)
    if model != found.model.name:  # which heal takes for the dense model
        found = replace(found, model=replace(found.model, name=model, revision=None))
    folder = save(network, output, tokenizer=tokenizer, plan=found)
    mended = [made_up_for(found)] if found.compensation and not uncompensated else []
    say("\n".join([*removed_in_words(found), *mended, f"written: {folder}"]))
    say_next(what_next(output, model))


run = partial(call, apply_to_model)
