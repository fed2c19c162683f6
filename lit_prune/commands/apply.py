"""`lit-prune apply`: a plan that was made before, applied to a copy of its model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lit_prune.commands.arguments import call, default_device
from lit_prune.data import calibration_batches, drawn_windows, require_source
from lit_prune.errors import LitPruneError
from lit_prune.export import require_empty, save
from lit_prune.files import say
from lit_prune.healing import create_compensation
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.plan import PrunePlan
from lit_prune.pruning import apply_plan, compensate_plan


def apply_to_model(
    plan: str,
    model: str,
    *,
    output: str,
    uncompensated: bool = False,
    compensate: str | dict[str, Any] | None = None,
    data: str = "builtin",
    window: int = 256,
    num_windows: int = 128,
    batch_size: int = 4,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    layout: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Remove what a plan says from an unpruned copy of its model, and save it.

    With a compensation, its weights are measured anew, in one pass over the text for each removal: that may be far more
    text than a search can look at.

    Args:
        plan: A prune_plan.json, or a folder that holds one.
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        output: Folder for the pruned model; it must not exist, or be empty.
        uncompensated: Remove alone, where the plan was made with a compensation.
        compensate: What makes up for each removal in weights that stay - scale, linear or bias; options as YAML. By
            default the factors of the plan, where it has some.
        data: Text for that, as for prune.
        window: Tokens in a window of it.
        num_windows: Windows, drawn from the text.
        batch_size: Windows in a batch.
        dtype: Of the weights: float32, bfloat16, float16 or auto.
        device: Such as cuda:0 or cpu; a GPU where there is one and a compensation to measure.
        seed: Decides which windows are drawn.
        layout: YAML or JSON file that describes blocks which are not understood: see docs/architectures.md.
        trust_remote_code: Run code that comes with the model.
    """
    require_empty(output)
    require_source(data)
    steps = PrunePlan.load(plan)
    if compensate is not None and uncompensated:
        raise LitPruneError("uncompensated removes alone; leave it or compensate out")
    create_compensation("none" if compensate is None else compensate)  # before the model is loaded
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    device = default_device(device) if compensate is not None else device or "cpu"
    network = load(model, dtype=dtype, device=device, layout=layout, trust_remote_code=trust_remote_code)
    if compensate is None:
        steps = apply_plan(network, steps, uncompensated=uncompensated)
    else:
        windows = drawn_windows(data, tokenizer, window=window, wanted=1, most=num_windows, seed=seed)
        batches = calibration_batches(windows, batch_size)
        steps = compensate_plan(network, steps, batches, compensate, calibration={"source": data, "window": window})
    if model != steps.model.name:  # which heal takes for the dense model
        steps = replace(steps, model=replace(steps.model, name=model, revision=None))
    folder = save(network, output, tokenizer=tokenizer, plan=steps)
    say(f"removed {len(steps.removed)} sublayers\nwritten: {folder}")


run = partial(call, apply_to_model)
