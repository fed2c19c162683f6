"""A folder with its own modelling file: it loads where lit_prune is not installed, with `trust_remote_code=True`.

The file is the stock class, from which the removed parts are taken out by name; of transformers nothing is copied.
"""

from __future__ import annotations

import copy
import inspect
from importlib.metadata import version
from json import dumps
from pathlib import Path
from pprint import pformat
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from lit_prune.anatomy import SublayerStub, find_sublayers, stubs
from lit_prune.errors import ModelError
from lit_prune.export.card import FILLED_AT_RANDOM, Usage, usage_by
from lit_prune.export.folder import require_same
from lit_prune.files import write_text
from lit_prune.loading import autoload
from lit_prune.surgery import recorded_biases, remember, without_tombstones

CODE_FILE = f"{autoload.CODE_MODULE}.py"
NOTE = (
    "Without `trust_remote_code=True` transformers stops, since the tensors of the removed sublayers are empty. "
    f"{FILLED_AT_RANDOM} The file `{CODE_FILE}` "
    "is all the code there is, and short enough to be read first; with lit_prune imported it is not needed."
)

CACHE = "from transformers import cache_utils\n"
CLASS = '''

GONE: dict[str, dict[str, Any] | None] = {gone}
"""Modules of the stock model that are gone, with what stands for a sublayer; None for a norm that went with it."""

BIASES: list[str] = {biases}
"""Projections with a bias that the stock model lacks."""


class {name}(Dense):
    """{name} without what lit-prune removed."""

    _auto_class = "AutoModelForCausalLM"  # who saves it saves this file too

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if not isinstance(self, {name}):
            return  # lit_prune, imported, has built the stock class without them
        self.tombstones: dict[str, torch.Tensor] = {{}}
        for path, options in GONE.items():
            self.tombstones |= tombstones(path, self.get_submodule(path))
            parent, _, child = path.rpartition(".")
            setattr(self.get_submodule(parent), child, nn.Identity() if options is None else stub(**options))
        # The folder has an empty tensor for each that is gone, at which the stock class would stop.
        ignored: Any = self._keys_to_ignore_on_load_unexpected  # a set since transformers 5.23, a list before
        kind = list if ignored is None else type(ignored)
        self._keys_to_ignore_on_load_unexpected = kind([*(ignored or ()), *(f"{{path}}." for path in GONE)])
        for path in BIASES:
            projection: Any = self.get_submodule(path)
            projection.bias = nn.Parameter(projection.weight.new_zeros(projection.weight.shape[0]))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers does, with an empty tensor for each that is gone."""
        writes = self.register_state_dict_post_hook(lambda _, state, prefix, __: state.update(self.tombstones))
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            writes.remove()

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: names of tensors are converted as for the stock class."""
        return False


def tombstones(path: str, gone: nn.Module) -> dict[str, torch.Tensor]:
    """An empty tensor for each of a module."""
    tensors = gone.state_dict(prefix=f"{{path}}.")
    return {{name: torch.empty(*each.shape[:-1], 0, dtype=each.dtype, device="cpu") for name, each in tensors.items()}}


def stub(as_tuple: bool, layer_idx: int | None, residual: tuple[str, int] | None) -> SublayerStub:
    """What stands for a sublayer."""
    argument = None if residual is None else ResidualArgument(*residual)
    return SublayerStub(as_tuple=as_tuple, layer_idx=layer_idx, residual=argument)
'''


def require_importable(model: PreTrainedModel) -> None:
    """Refuse with a ModelError a model whose class does not come with transformers, so that a file cannot import it."""
    if not type(model).__module__.startswith("transformers."):
        name = type(model).__name__
        raise ModelError(f"{name} does not come with transformers, so a file cannot import it; export as hf")


def write(model: PreTrainedModel, folder: Path, verify: bool) -> tuple[PreTrainedModel, Usage]:
    """Write a pruned model as `save` does, and beside it the Python file that builds it, by which it is read back."""
    is_text = type(model.config) in AutoModelForCausalLM._model_mapping
    factory: Any = AutoModelForCausalLM if is_text else AutoModelForImageTextToText
    put_back = remember([vars(model.config)], ["auto_map"])
    # The config names the file and no other code, for as long as it is written.
    model.config.auto_map = {factory.__name__: f"{autoload.CODE_MODULE}.{type(model).__name__}"}
    try:
        # First: saving leaves the dtype in the config as a word, with which not every class can be built.
        write_text(folder / CODE_FILE, modelling_code(model))
        model.save_pretrained(folder)
    finally:
        put_back()
    if verify:
        try:
            with autoload.teaching(False):
                read = factory.from_pretrained(folder, dtype=model.dtype, trust_remote_code=True)
        except RuntimeError as error:
            raise ModelError(f"read back, the file does not build what was saved: {error}") from error
        with without_tombstones(model):
            require_same(model, read.to(model.device).eval())
    return model, usage_by(factory.__name__, NOTE, options=", trust_remote_code=True")


def modelling_code(model: PreTrainedModel) -> str:
    """The Python source of a class that builds a pruned model of a class of transformers'."""
    name, module = type(model).__name__, type(model).__module__
    head = f'"""{name} as lit-prune {version("lit-prune")} left it. Written by a program: changes are lost."""'
    source = inspect.getsource(stubs).partition('"""\n\n')[2]
    future, _, classes = source.partition(CACHE)
    parts = pformat(gone_modules(model), sort_dicts=False, width=116)
    biases = dumps(recorded_biases(model))
    own = f"{CACHE}from {module} import {name} as Dense\n"
    return f"{head}\n\n{future}{own}{classes}{CLASS.format(gone=parts, biases=biases, name=name)}"


def gone_modules(model: PreTrainedModel) -> dict[str, dict[str, Any] | None]:
    """Paths of modules that the stock model has and a pruned one lacks, with options of what stands for a sublayer."""
    config = copy.deepcopy(model.config)
    with torch.device("meta"), autoload.teaching(False):
        anatomy = find_sublayers(type(model)(config))
    gone = [sublayer for sublayer in find_sublayers(model).removed if sublayer in anatomy]
    return {part.path: _options(part.stub()) for part in anatomy.parts(gone)}


def _options(stub: nn.Module) -> dict[str, Any] | None:
    if not isinstance(stub, SublayerStub):
        return None
    residual = None if stub.residual is None else (stub.residual.name, stub.residual.position)
    return {"as_tuple": stub.as_tuple, "layer_idx": stub.layer_idx, "residual": residual}
