"""`lit-prune apply`: a plan that was made before, applied to a copy of its model."""

from __future__ import annotations

from collections.abc import Sequence

from lit_prune.commands.arguments import call
from lit_prune.export import require_empty, save
from lit_prune.models import load, load_tokenizer
from lit_prune.plan import PrunePlan
from lit_prune.pruning import apply_plan


def run(verb: str, arguments: Sequence[str]) -> None:
    """The verb's entry."""
    call(apply_to_model, verb, arguments, positionals=["plan", "model"])


def apply_to_model(
    plan: str,
    model: str,
    *,
    output: str,
    dtype: str = "float32",
    uncompensated: bool = False,
    layout: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Remove what a plan says from an unpruned copy of its model, and save it.

    Args:
        plan: A prune_plan.json, or a folder that holds one.
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        output: Folder for the pruned model; it must not exist, or be empty.
        dtype: Of the weights: float32, bfloat16, float16 or auto.
        uncompensated: Remove alone, where the plan was made with a compensation.
        layout: YAML or JSON file that describes blocks which are not understood: see docs/architectures.md.
        trust_remote_code: Run code that comes with the model.
    """
    require_empty(output)
    steps = PrunePlan.load(plan)
    network = load(model, dtype=dtype, layout=layout, trust_remote_code=trust_remote_code)
    apply_plan(network, steps, uncompensated=uncompensated)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    folder = save(network, output, tokenizer=tokenizer, plan=steps)
    print(f"removed {len(steps.removed)} sublayers\nwritten: {folder}")
