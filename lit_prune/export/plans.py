"""Plans in the forms of other tools, which make the pruned model of the dense one themselves; and one such form read.

Only what goes is told: what was refitted or healed is in no plan. A tool that knows blocks alone is given no plan of
single sublayers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from lit_prune.anatomy import decoder_config, find_sublayers
from lit_prune.errors import PlanError
from lit_prune.export.decilm import PARTS
from lit_prune.files import read_json
from lit_prune.loading.models import skeleton
from lit_prune.plan import KINDS, Candidate, PrunePlan, PruneStep, SublayerId

CONFIG_FILE, BLOCKS = "config.json", "block_configs"
OF_PART = dict(zip(PARTS, KINDS, strict=True))
"""Kinds of sublayers by what a block's parts are called there."""
ANOTHER_FORM = ("replace_with_linear", "mamba", "sparsify", "ffn_mult", "moe")
"""What makes a part another one, or says its width in a way that cannot be compared."""


def prune_layers(plan: PrunePlan) -> str:
    """The option of llama.cpp's `llama-quantize`: numbers of blocks from 0, separated by commas.

    A PlanError says that the plan removes single sublayers, or nothing.
    """
    return f"--prune-layers {','.join(map(str, blocks_gone(plan)))}"


def mergekit(plan: PrunePlan) -> str:
    """A passthrough merge of mergekit's, in YAML: runs of the blocks that stay. Errors are as of `prune_layers`."""
    borders = [-1, *blocks_gone(plan), plan.model.num_blocks]
    runs = [[before + 1, after] for before, after in pairwise(borders) if after > before + 1]
    if not runs or not plan.model.name:
        raise PlanError(f"mergekit wants a model and blocks that stay; found {plan.model.name!r} and {len(runs)} runs")
    slices = [{"sources": [{"model": plan.model.name, "layer_range": run}]} for run in runs]
    merge = {"slices": slices, "merge_method": "passthrough"}
    return str(yaml.safe_dump(merge, sort_keys=False, default_flow_style=None))


def puzzletron(plan: PrunePlan) -> str:
    """The `block_configs` of Puzzletron (NVIDIA's ModelOpt), in JSON: no_op where something goes, else dense sizes.

    A PlanError says that FFNs have experts or another form, a ModelError that there is no config of the plan's model.
    """
    model = skeleton(plan.model.name, revision=plan.model.revision)
    plan.model.require_same(find_sublayers(model).facts())
    heads, width = _sizes(model)
    if width is None or any("experts" in name for name, _ in model.named_modules()):
        raise PlanError(f"FFNs of {plan.model.model_type} have no one intermediate_size, which Puzzletron is told")
    gone = {*plan.removed}
    configs = [
        {
            "attention": _part(SublayerId(block, "attention") in gone, num_key_value_heads=heads),
            "ffn": _part(SublayerId(block, "mlp") in gone, intermediate_size=width),
        }
        for block in range(plan.model.num_blocks)
    ]
    return json.dumps({BLOCKS: configs}, indent=2) + "\n"


PLAN_FORMATS: dict[str, Callable[[PrunePlan], str]] = {
    "llama-quantize": prune_layers,
    "mergekit": mergekit,
    "puzzletron": puzzletron,
}
"""What a plan is written as, by the name of the format."""


def blocks_gone(plan: PrunePlan) -> list[int]:
    """Numbers of the blocks that go whole; a PlanError where something else goes, or nothing."""
    gone = set(plan.removed)
    blocks = sorted({sublayer.block for sublayer in gone})
    single = [each for each in sorted(gone) if any(SublayerId(each.block, kind) not in gone for kind in KINDS)]
    if single:
        names = ", ".join(map(str, single[:4]))
        raise PlanError(
            f"the plan removes {names}{', …' if len(single) > 4 else ''} alone, and this tool knows whole blocks; "
            "prune with --granularity block, or export the model instead of the plan"
        )
    if not blocks:
        raise PlanError("the plan removes nothing, so there is nothing to tell")
    return blocks


def plan_of_config(path: str | Path, model: Callable[[], PreTrainedModel]) -> PrunePlan | None:
    """Read a plan from a config with `block_configs`, as Puzzletron and DeciLM write them; None where it has none.

    Args:
        path: A file, or a folder with a `config.json`.
        model: Gives the dense model; on the meta device will do.

    Raises:
        PlanError: The entry is damaged or of another number of blocks, or blocks differ from the dense model's in
            anything but what is gone: narrower FFNs and fewer heads are no plan.
    """
    file = Path(path) / CONFIG_FILE if Path(path).is_dir() else Path(path)
    try:
        data = read_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever reads plans says what is wrong
    blocks = data.get(BLOCKS) if isinstance(data, Mapping) else None
    if blocks is None:
        return None
    if not isinstance(blocks, list):
        raise PlanError(f"{file} is damaged: its {BLOCKS} are no list")
    dense = model()
    anatomy, sizes = find_sublayers(dense), _dense_sizes(dense)
    gone = [candidate for number, block in enumerate(blocks) if (candidate := _gone(block, number, sizes, file))]
    if len(blocks) != anatomy.num_blocks:
        raise PlanError(f"{file} has {len(blocks)} blocks, the model {anatomy.num_blocks}; give its dense model")
    steps: list[PruneStep] = []
    before: list[SublayerId] = []
    for candidate in gone:
        after = [*before, *candidate.sublayers]
        steps.append(PruneStep(candidate, anatomy.num_freed(after) - anatomy.num_freed(before)))
        before = after
    return PrunePlan(anatomy.facts(), tuple(steps), search={"name": BLOCKS})


def _gone(block: Any, number: int, sizes: Mapping[str, Any], file: Path) -> Candidate | None:
    """What goes of a block."""
    going = tuple(
        SublayerId(number, kind) for part, kind in OF_PART.items() if _is_gone(block, part, number, sizes, file)
    )
    return Candidate(going) if going else None


def _is_gone(block: Any, part: str, number: int, sizes: Mapping[str, Any], file: Path) -> bool:
    found = block.get(part) if isinstance(block, Mapping) and not block.get("parallel_blocks") else None
    if not isinstance(found, Mapping) or not isinstance(found.get("no_op", False), bool):
        raise PlanError(f"{file} is damaged, or of another kind: block {number} has no {part} with a no_op")
    if found.get("no_op", False):
        return True
    other = [name for name in ANOTHER_FORM if found.get(name)]
    other += [name for name, size in sizes.items() if found.get(name) not in (None, size)]
    if other:
        raise PlanError(
            f"block {number} of {file} has {part} with {other[0]} = {str(found[other[0]])[:40]}, the dense model "
            f"{sizes.get(other[0], 'has none')}; a plan says what goes, not what gets smaller or other"
        )
    return False


def _dense_sizes(model: PreTrainedModel) -> dict[str, Any]:
    """What blocks of the dense model say, by the names in Puzzletron's layout and in DeciLM's."""
    (heads, width), config = _sizes(model), decoder_config(model)
    group = None if heads is None else config.num_attention_heads // heads
    return {"num_key_value_heads": heads, "n_heads_in_group": group, "intermediate_size": width}


def _sizes(model: PreTrainedModel) -> tuple[int | None, int | None]:
    config = decoder_config(model)
    found = [getattr(config, name, None) for name in ("num_key_value_heads", "intermediate_size")]
    heads, width = (size if isinstance(size, int) else None for size in found)
    return heads or getattr(config, "num_attention_heads", None), width


def _part(is_gone: bool, **sizes: int | None) -> dict[str, Any]:
    return {"no_op": is_gone, **(dict.fromkeys(sizes) if is_gone else sizes)}
