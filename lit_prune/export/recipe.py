"""A pruned model as its plan and what differs from the dense model: nothing that is the dense model's own.

Whoever has the dense model rebuilds the pruned one to the last bit. Files may be a stranger's: they hold JSON and
numbers, nothing of them is run, and what they unpack to is as large as the dense model's tensors at most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import Record, decoder_config, find_sublayers
from lit_prune.errors import ModelError, PlanError
from lit_prune.export.card import CARD_FILE, Usage, model_card
from lit_prune.export.differences import difference, with_difference
from lit_prune.export.folder import require_empty, require_finished, require_same
from lit_prune.files import folder_aside, record_of, to_json
from lit_prune.loading.checksums import require_intact, write_sums
from lit_prune.loading.devices import is_spread
from lit_prune.loading.digests import is_packed, weights_digest, weights_of
from lit_prune.loading.models import load
from lit_prune.loading.sources import is_path
from lit_prune.plan import PLAN_FILE, PrunePlan, SublayerId
from lit_prune.surgery import compact, compacted, make_biases, remove, removed_sublayers

CHANGES_FILE = "changes.safetensors"
"""Differences of the weights that were changed, by their names in the pruned model; absent where none was."""
ENTRY = "lit_prune_recipe"
"""Where the record stands among the metadata of that file."""
MUCH = 1 << 18
"""Bytes of a plan above which it goes without what rounds measured beside their scores."""
ROUNDS = ("measured", "screened", "errors", "margins", "chosen")
VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """What a file of changes says of itself.

    Attributes:
        version: The version of the form.
        dtype: The type of the weights, such as `bfloat16`, in which the dense model is loaded.
        dense: The `weights_digest` of the dense model in this type.
        rebuilt: That of the pruned model.
        biases: Sublayers whose output projection got a bias, with its path inside the sublayer.
    """

    version: int
    dtype: str
    dense: str
    rebuilt: str
    biases: Mapping[str, str] = field(default_factory=dict)


def save_recipe(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    plan: PrunePlan | None = None,
    verify: bool = True,
    dense: PreTrainedModel | None = None,
) -> Path:
    """Write the plan of a pruned model and what differs from the dense model's weights.

    Args:
        model: A pruned model, refitted or healed or as it was left, with adapters merged.
        directory: Where the folder goes; it must not exist, or be empty.
        tokenizer: Not written: it is the dense model's.
        plan: The plan of all that is gone from the dense model.
        verify: Whether the model is rebuilt from what was written, and weights and logits are compared.
        dense: The dense model in the type of `model`; it is turned into the pruned one. By default the one that the
            plan names is loaded.

    Returns:
        The folder.

    Raises:
        ModelError: The folder is not empty, there is no plan of all that is gone, the model is not finished, its
            weights are quantised, or the dense model is another one's. Nothing is left behind then.
    """
    path, plan = require_empty(directory), require_whole_plan(model, plan)
    if dense is None:
        dense = load(plan.model.name, dtype=model.dtype, revision=plan.model.revision, layout=_record(model).layout)
    try:
        with folder_aside(path) as aside, compacted(model):
            _write(model, dense, plan, aside)
            if verify and (aside / CHANGES_FILE).exists():
                _change(dense, aside / CHANGES_FILE)
            if verify:
                require_same(model, dense)
            write_sums(aside)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot save the recipe as {directory}: {error}") from error
    return Path(directory).expanduser()


def recipe_of(folder: str | Path) -> Recipe | None:
    """Read the record of a recipe's changes; None where the folder, or that of a plan's file, has none.

    Raises:
        ModelError: The file is damaged, or of a newer lit-prune.
    """
    path = _changes_of(folder)
    if not path.is_file():
        return None
    with _opened(path) as file:
        text = (file.metadata() or {}).get(ENTRY, "")
    try:
        found = record_of(Recipe, json.loads(text))
        for name in found.biases:
            SublayerId.parse(name)
    except (ValueError, TypeError, RecursionError, PlanError) as error:
        raise ModelError(f"{path} is no file of changes, or damaged: {str(error)[:200]}") from error
    if found.version != VERSION:
        raise ModelError(f"{path} has version {found.version}, this lit-prune reads {VERSION}; upgrade it")
    return found


def rebuild(model: PreTrainedModel, folder: str | Path) -> PrunePlan:
    """Make the pruned model of a recipe of its dense model, in place, to the last bit.

    Args:
        model: The dense model, in the type that the recipe names.
        folder: The folder of the recipe, or its plan's file.

    Returns:
        The plan.

    Raises:
        ModelError: The folder has no changes, the files are damaged, the model is not the one that the recipe was made
            of, or what comes of it is not the model that the recipe is of. Only in the last case it was changed.
        PlanError: The plan is no plan, or of another model.
    """
    plan, recipe = PrunePlan.load(folder), recipe_of(folder)
    if recipe is None:
        raise ModelError(f"there is no {CHANGES_FILE} beside the plan in {folder}: it changes no weights; apply it")
    path = _changes_of(folder)
    require_intact(path.parent)
    plan.model.require_same(find_sublayers(model).facts())
    if (found := weights_digest(model)) != recipe.dense:
        raise ModelError(
            f"this is not the dense model of the recipe, {plan.model.name or 'which it does not name'} in "
            f"{recipe.dtype}: the SHA-256 of its weights is {found[:16]}…, expected {recipe.dense[:16]}…. Give that "
            "model, of the same revision, or take the plan alone with --uncompensated true"
        )
    _take_out(model, plan, recipe.biases)
    _change(model, path)
    if weights_digest(model) != recipe.rebuilt:
        raise ModelError(f"what comes of {path} is not the model that it was made of; take another copy of the recipe")
    return plan


def require_whole_plan(model: PreTrainedModel, plan: PrunePlan | None) -> PrunePlan:
    """The plan of a model; a ModelError where it tells of less than is gone, or the model is not finished."""
    require_finished(model, plan)
    if plan is None:
        raise ModelError(f"a recipe is a plan and what differs, and there is no plan: give the folder with {PLAN_FILE}")
    if others := set(removed_sublayers(model)) - set(plan.removed):
        names = ", ".join(sorted(map(str, others)))
        raise ModelError(f"{names} are gone from the model, and not in its plan, which is of a model pruned before")
    return plan


def _write(model: PreTrainedModel, dense: PreTrainedModel, plan: PrunePlan, folder: Path) -> None:
    """Write plan, changes and card; the dense model loses what the plan says."""
    about = {"dtype": str(model.dtype).removeprefix("torch."), "dense": weights_digest(dense)}
    _require_plain(model)
    _take_out(dense, plan, _record(model).biases)
    changes = _changes(dict(weights_of(model)), dict(weights_of(dense)))
    if changes:
        recipe = Recipe(VERSION, rebuilt=weights_digest(model), biases=_record(model).biases, **about)
        save_file(changes, folder / CHANGES_FILE, {"format": "pt", ENTRY: json.dumps(asdict(recipe))})
    kept = _light(plan).save(folder / PLAN_FILE)
    for file in folder.glob(CHANGES_FILE):
        file.chmod(kept.stat().st_mode)  # safetensors writes for the owner alone
    (folder / CARD_FILE).write_text(model_card(model, plan, _usage(plan)), encoding="utf-8")


def _require_plain(model: PreTrainedModel) -> None:
    if packed := next((name for name, values in weights_of(model) if is_packed(values)), None):
        raise ModelError(f"a recipe holds plain weights, and {packed} is quantised; make it of the model before that")
    if is_spread(model):
        raise ModelError("the model is spread over devices; load it onto one to compare it with the dense model")


def _take_out(model: PreTrainedModel, plan: PrunePlan, biases: Mapping[str, str]) -> None:
    remove(model, plan.removed)
    make_biases(model, biases)
    compact(model)


def _changes(own: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What differs, packed."""
    kinds = [{name: (values.shape, values.dtype) for name, values in of.items()} for of in (own, base)]
    if differing := sorted({name for name, _ in kinds[0].items() ^ kinds[1].items()}):
        raise ModelError(
            f"the dense model is not that of this one: {', '.join(differing[:3])} ({len(differing)}) are of another "
            "shape or type, or missing"
        )
    return {
        name: difference(values, base[name])
        for name, values in own.items()
        if not torch.equal(_bytes(values), _bytes(base[name]))
    }


def _change(model: PreTrainedModel, path: Path) -> None:
    """Change a model's weights by what a file holds."""
    own = dict(weights_of(model))
    with _opened(path) as file, torch.no_grad():
        names = list(file.keys())
        if unknown := sorted(set(names) - set(own)):
            raise ModelError(f"{path} changes {', '.join(unknown[:3])} ({len(unknown)}), which the model does not have")
        for name in names:
            packed = file.get_tensor(name)
            if packed.dtype != torch.uint8 or packed.dim() != 1:
                raise ModelError(f"{path} is no file of changes, or damaged: {name} is {packed.dtype}")
            own[name].copy_(with_difference(own[name], packed))


def _bytes(values: Tensor) -> Tensor:
    """Numbers as they are stored, in which NaN is itself and -0 is not 0."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8)


def _light(plan: PrunePlan) -> PrunePlan:
    """The plan, without what rounds measured beside their scores where that is much."""
    if len(json.dumps(to_json(plan.to_dict()))) <= MUCH:
        return plan
    empty: dict[str, Any] = {name: {} for name in ROUNDS}
    return replace(plan, steps=tuple(replace(step, **empty) for step in plan.steps))


def _usage(plan: PrunePlan) -> Usage:
    name = plan.model.name if plan.model.name and not is_path(plan.model.name) else "DENSE_MODEL"
    note = (
        "This is a recipe: the plan, and what was changed in weights that stay, as differences from the dense model's. "
        "The weights themselves are not here; the command makes the pruned model of the dense one, to the last bit, "
        "and refuses any other."
    )
    return Usage(f"lit-prune apply FOLDER {name} --output pruned", note, language="bash", library="lit-prune")


def _record(model: PreTrainedModel) -> Record:
    return Record.of(decoder_config(model))


def _changes_of(folder: str | Path) -> Path:
    path = Path(folder)
    return (path if path.is_dir() else path.parent) / CHANGES_FILE


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with cast(Callable[..., Any], safe_open)(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no file of changes, or damaged: {error}") from error
