"""With lit_prune imported, transformers builds pruned models as they are, whoever asks: loaders, `from_config`, peft.

A model of transformers ends its `__init__` with `post_init`, before weights are read. There, what the config records as
gone is taken out. The reference page of runtimes says why there, and what each loader does without lit_prune.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "transformers.modeling_utils"
CODE_MODULE = "modeling_lit_prune"
"""The module that comes with folders for places without lit_prune."""
SWITCH = "LIT_PRUNE_LOADERS"
"""Environment variable: `off` leaves transformers' loaders as they are."""
_TAUGHT = "_lit_prune_taught"
_is_on = os.environ.get(SWITCH, "on").lower() not in ("off", "0", "false", "no")
_OVERRIDE: ContextVar[bool | None] = ContextVar("lit_prune_loaders", default=None)


def install() -> None:
    """Teach `PreTrainedModel`, at once or as soon as transformers' part with it is imported, however often that is."""
    if not any(hasattr(finder, _TAUGHT) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TeachingFinder())
    if MODULE in sys.modules:
        # Another thread may be in the middle of importing it: this waits.
        _teach(importlib.import_module(MODULE))


def teach_loaders(on: bool = True) -> None:
    """Say whether transformers builds pruned models as they are; LIT_PRUNE_LOADERS=off in the environment says no.

    Where it does not, a loader of transformers stops at a pruned folder with an error that names its removed tensors.
    `lit_prune.load` does not depend on this.

    Args:
        on: Whether it does so; it does when lit_prune is imported.
    """
    global _is_on
    _is_on = on
    install()


@contextmanager
def teaching(on: bool) -> Iterator[None]:
    """Build as with (True) or without (False) lit_prune in a `with` block, whatever was switched on or off."""
    install()
    token = _OVERRIDE.set(on)
    try:
        yield
    finally:
        _OVERRIDE.reset(token)


def build_as_recorded(model: Any) -> None:
    """Take out of a model without weights what its config says is gone, and add the biases that it records.

    The model, perhaps a part of another, is at the end of its `__init__`. An AnatomyError says so where the record is
    damaged, or of a newer lit-prune.
    """
    override = _OVERRIDE.get()
    if not (_is_on if override is None else override) or not _is_recorded(model.config):
        return
    from lit_prune.anatomy import Record, decoder_config, find_sublayers
    from lit_prune.surgery import make_recorded_biases, record_removal, remove, tombstones

    anatomy = find_sublayers(model)
    record = Record.of(decoder_config(model))
    record.require_possible(len(anatomy.blocks))
    remove(model, [sublayer for sublayer in record.removed if sublayer in anatomy])
    # The body's parts are gone already when the whole is built, which has settings of its own.
    record_removal(model, find_sublayers(model))
    make_recorded_biases(model)
    # Folders from before there were tombstones have none.
    missing = {f"{re.escape(name)}$" for name in tombstones(model)}
    model._keys_to_ignore_on_load_missing = {*(model._keys_to_ignore_on_load_missing or ()), *missing}
    if _is_by_file(model):
        model.__class__ = type(model).__base__  # the file leaves the stock class alone
    _forget_code(model.config)


def require_loadable(model: Any, state: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `save_pretrained` is to write of a model's tensors, so that no loader takes gaps for forgotten weights.

    These are the tensors that the user gives, perhaps parameters alone, or those of the model (None), with the
    tombstones that they lack. A ModelError says that sublayers are only muted, that the config says of others that they
    are gone, or that there are adapters, which transformers does not know of and would write as layers.
    """
    stubs = sys.modules.get("lit_prune.anatomy.stubs")
    has_stubs = stubs is not None and any(isinstance(module, stubs.SublayerStub) for module in model.modules())
    if _is_by_file(model) or not (has_stubs or _is_recorded(model.config)):
        return state
    from lit_prune.anatomy import is_adapted
    from lit_prune.errors import ModelError
    from lit_prune.surgery import are_aside, require_recorded, tombstones

    require_recorded(model)
    if is_adapted(model) and not getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "the model has adapters inside, and would be written with names that load as random layers; "
            "lit_prune.merge(model) folds them in, the PeftModel around it saves them alone"
        )
    state = model.state_dict() if state is None and are_aside(model) else state
    return state if state is None else {**tombstones(model), **state}


def _is_by_file(model: Any) -> bool:
    """Whether its class is of the file that came with it, which writes tombstones by itself."""
    return type(model).__module__.rpartition(".")[2] == CODE_MODULE


def _is_recorded(config: Any) -> bool:
    # Most models are dense, and are built without looking further.
    parts = (config, *(getattr(config, name, None) for name in type(config).sub_configs))
    records = [vars(part)["lit_prune"] for part in parts if part is not None and vars(part).get("lit_prune")]
    return any(not isinstance(record, dict) or record.get("removed") or record.get("biases") for record in records)


def _forget_code(config: Any) -> None:
    """Saved again, the model comes without the file."""
    named = vars(config).get("auto_map") or {}
    kept = {key: value for key, value in named.items() if f"{CODE_MODULE}." not in str(value)}
    if named and not kept:
        del config.auto_map
    elif named:
        config.auto_map = kept


class _TeachingFinder:
    """Finds one module where the others find it, and sees to it that it is taught when it is executed.

    It stays: a probe, a reload, or an import that failed asks again.
    """

    _lit_prune_taught = True

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        others = [finder for finder in sys.meta_path if not hasattr(finder, _TAUGHT)]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _teach(module)

            loader.exec_module = exec_module
        return spec


def _teach(module: Any) -> None:
    model_class = getattr(module, "PreTrainedModel", None)
    if model_class is None or hasattr(model_class.post_init, _TAUGHT):
        return
    original = model_class.post_init

    @functools.wraps(original)
    def post_init(self: Any) -> None:
        from lit_prune.loading import autoload  # as it is now, should it have been imported anew

        original(self)
        autoload.build_as_recorded(self)

    write = model_class.save_pretrained

    @functools.wraps(write)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        import inspect  # a third of what importing lit_prune takes

        from lit_prune.loading import autoload

        given = inspect.signature(write).bind(self, *args, **kwargs)
        given.arguments["state_dict"] = autoload.require_loadable(self, given.arguments.get("state_dict"))
        return write(*given.args, **given.kwargs)

    setattr(post_init, _TAUGHT, True)
    model_class.post_init, model_class.save_pretrained = post_init, save_pretrained
