"""The model card of a pruned model: what is gone, how to load the rest, and the figures of the plan."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from transformers import PreTrainedModel

from lit_prune.anatomy import Anatomy, classifies, find_sublayers
from lit_prune.files import markdown_inline, markdown_table
from lit_prune.plan import KINDS, PLAN_FILE, PrunePlan, PruneStep
from lit_prune.searches import outcome_in_words

CARD_FILE = "README.md"
FILLED_AT_RANDOM = (
    "Told to ignore that (`ignore_mismatched_sizes=True`), it fills the removed sublayers with random weights, "
    "and another model comes out."
)


@dataclass(frozen=True)
class Usage:
    """How a saved folder is loaded.

    Attributes:
        code: Python code, which gives `model`; without a final newline.
        note: What a reader must know, in Markdown.
    """

    code: str
    note: str


def model_card(model: PreTrainedModel, plan: PrunePlan | None = None, how: Usage | None = None) -> str:
    """The card of a model as it is saved, in Markdown: with what the plan says, and how it is loaded (see `usage`)."""
    base = base_name(plan.model.name if plan is not None and plan.model.name else model.config.name_or_path or "")
    anatomy = find_sublayers(model)
    how = how or usage(model)
    task = "text-classification" if classifies(model) else "text-generation"
    sections = [_front_matter(base, task), _summary(base, anatomy), f"```python\n{how.code}\n```\n\n{how.note}"]
    if plan is not None and plan.steps:
        sections.append(_figures(plan))
    return "\n\n".join(sections) + "\n"


def usage(model: PreTrainedModel, folder: str = "FOLDER") -> Usage:
    """How the folder of a model is loaded: by any loader where a stock model is left, else by lit-prune.

    The model is as it is saved; one without weights will do.
    """
    plain = stock_usage(model, folder, "This is a stock model: whatever loads models of its kind loads it.")
    if find_sublayers(model).is_stock:
        return plain
    return Usage(
        "import lit_prune  # without it, loading stops at the removed sublayers, whose tensors are empty\n"
        + plain.code,
        "With lit_prune imported, every loader of transformers builds the model as it was pruned: auto classes, "
        "pipelines and peft too. `lit_prune.load` checks besides that no weight is missing. Without it a loader stops, "
        f"since tensors are of another size. {FILLED_AT_RANDOM}",
    )


def stock_usage(model: PreTrainedModel, folder: str, note: str) -> Usage:
    """How transformers' own class loads the folder of a model."""
    name, place = type(model).__name__, dumps(folder, ensure_ascii=False)
    return Usage(f"from transformers import {name}\n\nmodel = {name}.from_pretrained({place})", note)


def base_name(name: str) -> str:
    """A model's name without paths of this machine: a folder's last part, anything else as it is."""
    is_path = os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1 or Path(name).is_dir()
    return Path(name).name if name and is_path else name


def _front_matter(base: str, task: str) -> str:
    # The hub looks the base model up, so only hub names may stand there.
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", base)
    lines = ["library_name: transformers", f"pipeline_tag: {task}", "tags:", "- lit-prune", "- pruned"]
    return "\n".join(["---", *([f"base_model: {base}"] if is_hub_name else []), *lines, "---"])


def _summary(base: str, anatomy: Anatomy) -> str:
    title = markdown_inline(base or anatomy.model_type)
    if not anatomy.removed:
        return f"# {title}\n\nA dense model, saved by lit-prune."
    gone = "\n".join(_gone(anatomy, kind) for kind in KINDS)
    return (
        f"# {title}, pruned\n\n"
        f"lit-prune removed these sublayers, named by their block (from 0) in the original model:\n\n{gone}\n\n"
        f"{anatomy.num_parameters:,} parameters are left."
    )


def _gone(anatomy: Anatomy, kind: str) -> str:
    blocks = [str(sublayer.block) for sublayer in anatomy.removed if sublayer.kind == kind]
    return f"- {kind}: {', '.join(blocks) or 'none'} ({len(blocks)} of {anatomy.num_blocks})"


def _figures(plan: PrunePlan) -> str:
    before, gone = plan.model.num_parameters, plan.num_removed_parameters
    facts = {
        "parameters": f"{before:,} before, {before - gone:,} after ({gone / before:.1%} removed)",
        "scorer": plan.scorer.get("name"),
        "search": plan.search.get("name"),
        "calibration": plan.calibration.get("source"),
        "calibration tokens": plan.calibration.get("num_tokens"),
    }
    listed = [f"- {name}: {markdown_inline(str(value))}" for name, value in facts.items() if value is not None]
    listed += [f"- {markdown_inline(line)}" for line in outcome_in_words(plan.budget)]
    if plan.compensation:
        listed.append(f"- made up for in weights that stay: {markdown_inline(plan.compensation['name'])}")
    if plan.healing:
        listed.append(
            f"- healed on {plan.healing['tokens']:,} tokens: perplexity {plan.healing['ppl_before']:.2f} -> "
            f"{plan.healing['ppl_after']:.2f} on validation windows"
        )
    heads = ("step", "removed", "parameters", "score", "loss before", "loss after")
    table = markdown_table(heads, (_row(number, step) for number, step in enumerate(plan.steps, start=1)), {"removed"})
    note = "Mean token losses in nats on the calibration tokens, just before and just after the removal."
    return "\n".join(["## How it was made\n", *listed, f"- the whole record: `{PLAN_FILE}`", "", table, "", note])


def _row(number: int, step: PruneStep) -> list[str]:
    figures = (_figure(value) for value in (step.score, step.nll_before, step.nll_after))
    return [str(number), step.removed.name, f"{step.num_parameters:,}", *figures]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
