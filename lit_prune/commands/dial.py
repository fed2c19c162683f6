"""`lit-prune dial`: a model of any size between a pruned one and its dense one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lit_prune.commands.arguments import call
from lit_prune.commands.options import Loading, Mixture
from lit_prune.commands.outcomes import removed_in_words, say_next
from lit_prune.errors import LitPruneError
from lit_prune.files import say
from lit_prune.plan import PrunePlan

REFIT = "refit"
MIXTURE, LOADING = Mixture(), Loading()


def dial_model(
    model: str,
    *,
    output: str,
    amount: float | None = None,
    steps: int | None = None,
    dense: str | None = None,
    compensate: str = REFIT,
    before: str | None = None,
    text: Mixture = MIXTURE,
    loading: Loading = LOADING,
) -> None:
    """Put removed sublayers back into a refitted or healed model, the last removal first, without training.

    They come from the dense model. What is still gone is refitted as for that size alone, in some four passes over the
    text, and what healing has changed since its own refit counts by the share that is still gone.

    Args:
        model: A folder that lit-prune wrote, with its prune_plan.json.
        output: Folder for the model between; it must not exist, or be empty.
        amount: The largest share of the model that is gone from it (in the plan's unit), such as 0.07; 0 gives the
            dense model.
        steps: Instead, how many of the plan's removals are left.
        dense: The dense model; by default the one that the plan names.
        compensate: refit, or none, which lays weights between those of the two models, measures nothing and stays on
            the CPU, unless a device is named.
        before: The folder that was healed, with the refit's weights; without it they are found again on the text, in
            twice the passes.
        text: The text that is refitted on.
        loading: How the models are loaded.
    """
    from lit_prune.export import require_empty, save
    from lit_prune.loading.models import load
    from lit_prune.pruning import dial
    from lit_prune.report import made_up_for

    require_empty(output)
    text.require_possible()
    if compensate not in (REFIT, "none"):
        raise LitPruneError(f"what is dialled is refitted or left as it is; found --compensate {compensate}")
    if before is not None and compensate == "none":
        raise LitPruneError("--before is for a refit; leave it or --compensate none out")
    if (amount is None) == (steps is None):
        raise LitPruneError("say how large: either --amount, the share that may be gone, or --steps, the removals left")
    plan, loading = PrunePlan.load(model), loading if compensate == REFIT else loading.on_the_cpu
    tokenizer, pruned = loading.tokenizer(model), loading.model(model)
    name = dense or plan.model.name
    revision = plan.model.revision if name == plan.model.name else None
    code = loading.trust_remote_code
    whole = load(name, dtype=pruned.dtype, device=loading.place, revision=revision, trust_remote_code=code)
    refitted = None if before is None else loading.model(before)
    batches = text.batches(tokenizer, whole.config, lambda: whole) if compensate == REFIT else None
    refit: dict[str, Any] = {"batches": batches, "before": refitted, "calibration": text.recorded, "progress": True}
    between = dial(pruned, whole, plan, amount=amount, num_steps=steps, **refit)
    if name != plan.model.name:
        between = replace(between, model=replace(between.model, name=name, revision=None))
    folder = save(whole, output, tokenizer=tokenizer, plan=between)
    mended = [made_up_for(between)] if "refitted" in between.compensation else []
    say("\n".join([*removed_in_words(between), *mended, f"written: {folder}"]))
    say_next({"talk to it": ["chat", output, "--against", name], "measure it": ["evaluate", output, "--against", name]})


run = partial(call, dial_model)
