"""The model card of a pruned model: what is gone, how to load the rest, and the figures of the plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from transformers import PreTrainedModel
from yaml import YAMLError

from lit_prune.anatomy import Anatomy, classifies, find_sublayers
from lit_prune.files import markdown_inline, markdown_table
from lit_prune.loading.sources import is_path
from lit_prune.plan import KINDS, PLAN_FILE, PrunePlan, PruneStep, manners_in_words, unseen_in_words
from lit_prune.searches import outcome_in_words

CARD_FILE = "README.md"
FILLED_AT_RANDOM = (
    "Told to ignore that (`ignore_mismatched_sizes=True`), it fills the removed sublayers with random weights, "
    "and another model comes out."
)


@dataclass(frozen=True)
class Usage:
    """How what was saved is loaded: code, in Python what gives `model`, and what a reader must know, in Markdown."""

    code: str
    note: str
    language: str = "python"
    library: str = "transformers"
    """By the Hub's name for it."""


def model_card(model: PreTrainedModel, plan: PrunePlan | None, how: Usage) -> str:
    """The card of a model as it is saved, in Markdown: with what the plan says, and how it is loaded."""
    name = plan.model.name if plan is not None and plan.model.name else model.config.name_or_path or ""
    base = Path(name).name if is_path(name) else name  # no path of this machine
    anatomy = find_sublayers(model)
    task = "text-classification" if classifies(model) else "text-generation"
    sections = [
        _front_matter(base, task, how.library, (model.config.name_or_path or "", name), plan),
        _summary(base, anatomy),
        f"```{how.language}\n{how.code}\n```\n\n{how.note}",
    ]
    if plan is not None and plan.steps:
        sections.append(_figures(plan))
    return "\n\n".join(sections) + "\n"


def usage(model: PreTrainedModel, folder: str = "FOLDER") -> Usage:
    """How the folder of a model is loaded: by any loader where a stock model is left, else by lit-prune.

    The model is as it is saved; one without weights will do.
    """
    name = type(model).__name__
    plain = usage_by(name, "This is a stock model: whatever loads models of its kind loads it.", folder)
    if find_sublayers(model).is_stock:
        return plain
    return Usage(
        "import lit_prune  # without it, loading stops at the removed sublayers, whose tensors are empty\n"
        + plain.code,
        "With lit_prune imported, every loader of transformers builds the model as it was pruned: auto classes, "
        "pipelines and peft too. `lit_prune.load` checks besides that no weight is missing. Without it a loader stops, "
        f"since tensors are of another size. {FILLED_AT_RANDOM}",
    )


def usage_by(name: str, note: str, folder: str = "FOLDER", options: str = "") -> Usage:
    """How a class of transformers loads a folder, with further arguments as code."""
    place = dumps(folder, ensure_ascii=False)
    return Usage(f"from transformers import {name}\n\nmodel = {name}.from_pretrained({place}{options})", note)


def _front_matter(base: str, task: str, library: str, places: tuple[str, ...], plan: PrunePlan | None) -> str:
    # The hub looks names up, so only hub names may stand there.
    source = None if plan is None else plan.calibration.get("source")
    known: dict[str, Any] = {"datasets": [source]} if _is_hub_name(source) else {}
    if _is_hub_name(base):
        known |= {"base_model": base, "base_model_relation": "finetune"}
    data = ModelCardData(
        **known,
        **next(filter(None, map(_licence, places)), {}),
        library_name=library,
        pipeline_tag=task,
        tags=["lit-prune", "pruned"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _is_hub_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not is_path(name)


def _licence(place: str) -> dict[str, Any]:
    """What the card of a model says of its license, where that card is on this machine."""
    file = Path(place) / CARD_FILE if is_path(place) else None
    if _is_hub_name(place):
        cached = try_to_load_from_cache(place, CARD_FILE)
        file = Path(cached) if isinstance(cached, str) else None
    if file is None or not file.is_file():
        return {}
    try:
        data = ModelCard.load(file).data
    except (OSError, ValueError, YAMLError):
        return {}  # somebody else's card
    found = {name: data.get(name) for name in ("license", "license_name", "license_link")}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _summary(base: str, anatomy: Anatomy) -> str:
    title = markdown_inline(base or anatomy.model_type)
    if not anatomy.removed:
        return f"# {title}\n\nA dense model, saved by lit-prune."
    gone = {kind: [str(sublayer.block) for sublayer in anatomy.removed if sublayer.kind == kind] for kind in KINDS}
    listed = "".join(
        f"- {kind}: {', '.join(blocks) or 'none'} ({len(blocks)} of {anatomy.num_blocks})\n"
        for kind, blocks in gone.items()
    )
    return (
        f"# {title}, pruned\n\n"
        f"lit-prune removed these sublayers, named by their block (from 0) in the original model:\n\n{listed}\n"
        f"{anatomy.num_parameters:,} parameters are left."
    )


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
    for name, perplexities, times in unseen_in_words(plan.unseen):
        listed.append(f"- perplexity on unseen {markdown_inline(name)}: {perplexities} ({times})")
    if plan.compensation.get("name", "none") != "none":
        listed.append(f"- made up for in weights that stay: {markdown_inline(plan.compensation['name'])}")
    if plan.healing:
        listed.append(
            f"- healed on {plan.healing['tokens']:,} tokens: perplexity {plan.healing['ppl_before']:.2f} -> "
            f"{plan.healing['ppl_after']:.2f} on validation windows"
        )
        listed += [f"- {name}: {shares}" for name, shares in manners_in_words(plan.healing.get("manners", {}))]
    heads = ("step", "removed", "parameters", "score", "loss before", "loss after")
    table = markdown_table(heads, (_row(number, step) for number, step in enumerate(plan.steps, start=1)), {"removed"})
    note = "Mean token losses in nats on the calibration tokens, just before and just after the removal."
    return "\n".join(["## How it was made\n", *listed, f"- the whole record: `{PLAN_FILE}`", "", table, "", note])


def _row(number: int, step: PruneStep) -> list[str]:
    figures = (step.score, step.nll_before, step.nll_after)
    shown = ("" if value is None else f"{value:.4f}" for value in figures)
    return [str(number), step.removed.name, f"{step.num_parameters:,}", *shown]
