"""A folder for vLLM's Transformers backend: it runs transformers' own model, from which a file takes what is gone.

Source: vllm/model_executor/models/transformers/base.py. That wants one attention for every layer that the config
counts; so the config in the folder counts attentions, and the file beside it knows the blocks. vLLM keeps no cache for
the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from pprint import pformat
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from lit_prune.anatomy import Record, find_sublayers
from lit_prune.errors import ModelError
from lit_prune.export.card import Usage
from lit_prune.export.decilm import read_tensors
from lit_prune.export.folder import require_same
from lit_prune.export.remote_code import gone_modules
from lit_prune.export.served import ELSEWHERE
from lit_prune.export.targets import HEAD, KIN, VLLM_MODELLED, VLLM_POSITIONS
from lit_prune.files import write_text
from lit_prune.loading import autoload
from lit_prune.surgery import stock_config

CODE_FILE = f"{autoload.CODE_MODULE}.py"
TARGET = "vLLM's Transformers backend"
USAGE = Usage(
    'from vllm import LLM\n\nmodel = LLM("FOLDER", trust_remote_code=True)',
    "For vLLM alone, whose Transformers backend runs it: its config counts attentions, not blocks. The file "
    f"`{CODE_FILE}` is all the code there is, and short enough to be read first.",
    library="vllm",
)
CODE = '''"""{base} as lit-prune {version} left it, for vLLM. Written by a program: changes are lost."""

import copy
from typing import Any

import torch
from {config_module} import {config} as DenseConfig
from {module} import {base} as Dense
from torch import Tensor, nn

DENSE: dict[str, Any] = {dense}
"""What the config says of all blocks. In the folder it says so of attentions, since vLLM wants one a layer."""

GONE: dict[str, bool | None] = {gone}
"""Modules that are gone: whether a sublayer returned a tuple; None for a norm that went with it."""

ATTENTIONS: list[str] = {attentions}
"""Those that are left, as vLLM counts them."""


class Nothing(nn.Module):
    """What stands for a sublayer: it adds nothing."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the input's shape."""
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.as_tuple else nothing


class {name}Config(DenseConfig):
    """{config} under another name, by which no loader takes the stock class for it."""

    model_type = "{model_type}"


class {name}(Dense):
    """{base} without what lit-prune removed."""

    config_class = {name}Config

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        config = copy.deepcopy(config)
        vars(config).update(DENSE)
        super().__init__(config, *args, **kwargs)
        for path, as_tuple in GONE.items():
            parent, _, child = path.rpartition(".")
            setattr(self.get_submodule(parent), child, nn.Identity() if as_tuple is None else Nothing(as_tuple))
        for number, path in enumerate(ATTENTIONS):
            self.get_submodule(path).layer_idx = number
'''


def require_modelled(model: PreTrainedModel) -> None:
    """Refuse with a ModelError a model that vLLM's Transformers backend is not known to run without sublayers."""
    kind = model.config.model_type
    if kind not in VLLM_MODELLED:
        known = ", ".join((*KIN, *VLLM_MODELLED))
        raise ModelError(f"vLLM is known to run a pruned {known}, not {kind}; {ELSEWHERE}")
    if not type(model).__module__.startswith("transformers.models."):
        raise ModelError(
            f"{type(model).__name__} does not come with transformers, so vLLM cannot import it; {ELSEWHERE}"
        )
    if Record.of(model.config).biases:
        raise ModelError(
            f"{TARGET} has no place for the biases that a compensation folded in; export as hf-remote-code"
        )
    if not any(sublayer.kind == "attention" for sublayer in find_sublayers(model).ids):
        raise ModelError(f"{TARGET} wants one attention at least, and this model has none; {ELSEWHERE}")
    rope: Mapping[str, Any] = model.config.rope_parameters or {}
    kinds = [each["rope_type"] for each in ([rope] if "rope_type" in rope else rope.values()) if each]
    if other := [kind for kind in kinds if kind not in VLLM_POSITIONS]:
        # Tables that are made anew as a text grows: vLLM has many texts in one pass.
        raise ModelError(
            f"rotary positions of the type {other[0]} are not written for {TARGET}; {', '.join(VLLM_POSITIONS)} are; "
            f"{ELSEWHERE}"
        )


def write(model: PreTrainedModel, folder: Path, verify: bool) -> tuple[PreTrainedModel, Usage]:
    """Write a pruned model with the file that builds it, and compare it with what transformers reads by that."""
    base = cast(PreTrainedModel, model.base_model)
    anatomy, name = find_sublayers(base), f"Pruned{type(base).__name__}"
    left = [sublayer for sublayer in anatomy.ids if sublayer.kind == "attention"]
    config, dense = _counting(model, [anatomy.position(sublayer.block) for sublayer in left])
    stock = type(config)
    config.architectures = [f"{name.removesuffix('Model')}ForCausalLM"]
    config.auto_map = {
        "AutoConfig": f"{autoload.CODE_MODULE}.{name}Config",
        "AutoModel": f"{autoload.CODE_MODULE}.{name}",
    }
    gone = {path: options and options["as_tuple"] for path, options in gone_modules(base).items()}
    code = CODE.format(
        base=type(base).__name__,
        module=type(base).__module__,
        config=stock.__name__,
        config_module=stock.__module__,
        model_type=f"lit_prune_{stock.model_type}",
        name=name,
        version=version("lit-prune"),
        dense=pformat(dense, sort_dicts=False, width=116),
        gone=pformat(gone, sort_dicts=False, width=116),
        attentions=pformat([anatomy[sublayer].path for sublayer in left], width=116),
    )
    model.save_pretrained(folder)
    settings = {**config.to_dict(), "model_type": f"lit_prune_{stock.model_type}"}
    write_text(folder / "config.json", json.dumps(settings, indent=2) + "\n")
    write_text(folder / CODE_FILE, code)
    if verify:
        _require_same(model, name, folder)
    return model, USAGE


def _counting(model: PreTrainedModel, positions: list[int]) -> tuple[Any, dict[str, Any]]:
    """A config with as many layers as there are attentions, at these positions, and what it has to say of blocks."""
    config = stock_config(model)
    num_blocks = config.num_hidden_layers
    lists = {
        name: [*value]
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == num_blocks and not name.startswith("_")
    }
    vars(config).update({name: [value[position] for position in positions] for name, value in lists.items()})
    config.num_hidden_layers = len(positions)
    config.dtype = model.dtype
    return config, {"num_hidden_layers": num_blocks, **lists}


def _require_same(model: PreTrainedModel, name: str, folder: Path) -> None:
    try:
        with autoload.teaching(False):
            builds: Any = get_class_from_dynamic_module(f"{autoload.CODE_MODULE}.{name}", folder)
            builds._keys_to_ignore_on_load_unexpected = [f"^{HEAD}$"]  # it has no head, vLLM has
            read = builds.from_pretrained(folder, dtype=model.dtype)
    except (RuntimeError, AttributeError) as error:
        raise ModelError(f"read back, the file does not build what was saved: {error}") from error
    require_same(cast(PreTrainedModel, model.base_model), read.to(model.device).eval())
    head = read_tensors(folder).get(HEAD)
    if head is not None and not torch.equal(head, model.state_dict()[HEAD].cpu()):
        raise ModelError(f"read back, the tensor {HEAD} has other values")
