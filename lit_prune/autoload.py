"""With lit_prune imported, transformers' own loaders build pruned models as they are: auto classes, pipelines, peft.

Without it they build the removed sublayers too and fill them with random weights.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "transformers.modeling_utils"
CODE_MODULE = "modeling_lit_prune"
"""The module that comes with folders for places without lit_prune."""
_TEACHING = ContextVar("teaching", default=True)
CONFIG_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def install() -> None:
    """Teach `PreTrainedModel.from_pretrained`, at once or as soon as transformers' part with it is imported."""
    if MODULE in sys.modules:
        _teach(sys.modules[MODULE])
    elif not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def uninstalled() -> Iterator[None]:
    """Load as where lit_prune is not imported, in a `with` block: for checking what others will get."""
    token = _TEACHING.set(False)
    try:
        yield
    finally:
        _TEACHING.reset(token)


def pruned_class(stock: type[Any]) -> type[Any]:
    """A class that builds the stock model and takes out what its config says is gone, before weights are read.

    For building only: the model gets its stock class back, so that it pickles, saves and prints as that.
    """
    from lit_prune.anatomy import Record, decoder_config, find_sublayers
    from lit_prune.surgery import make_recorded_biases, remove

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        anatomy = find_sublayers(self)
        remove(self, [each for each in Record.of(decoder_config(self)).removed if each in anatomy])
        make_recorded_biases(self)

    return type(stock.__name__, (stock,), {"__init__": __init__, "__module__": stock.__module__})


class _Finder:
    """Finds nothing by itself: waits for one module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _teach(module)

        loader.exec_module = exec_module
        return spec


def _teach(module: Any) -> None:
    original = module.PreTrainedModel.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        from_file = cls.__module__.rpartition(".")[2] == CODE_MODULE
        wanted = from_file or _is_recorded(kwargs.get("config"), pretrained_model_name_or_path, kwargs)
        if not _TEACHING.get() or not wanted:
            return original(cls, pretrained_model_name_or_path, *args, **kwargs)
        if from_file:
            cls = cls.__base__  # what the file does is done here, with stubs that lit_prune knows
        found = original(pruned_class(cls), pretrained_model_name_or_path, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        model.__class__ = cls
        _forget_code(model.config)
        return found

    module.PreTrainedModel.from_pretrained = classmethod(from_pretrained)


def _forget_code(config: Any) -> None:
    """Saved again, the model comes without the file."""
    named = vars(config).get("auto_map") or {}
    kept = {key: value for key, value in named.items() if f"{CODE_MODULE}." not in str(value)}
    if named and not kept:
        del config.auto_map
    elif named:
        config.auto_map = kept


def _is_recorded(config: Any, name: Any, options: Mapping[str, Any]) -> bool:
    from transformers import PreTrainedConfig

    from lit_prune.anatomy import RECORD_KEY

    if isinstance(config, PreTrainedConfig):
        data = config.to_dict()
    elif name is None or options.get("gguf_file"):
        return False
    else:
        chosen = {key: options[key] for key in CONFIG_OPTIONS if key in options}
        try:
            data = PreTrainedConfig.get_config_dict(config or name, **chosen)[0]
        except (OSError, ValueError):
            return False  # the loader itself says what is wrong
    parts = (data, *(each for each in data.values() if isinstance(each, Mapping)))
    records = [each[RECORD_KEY] for each in parts if each.get(RECORD_KEY)]
    # What is no record is told so by who reads it.
    return any(not isinstance(each, Mapping) or each.get("removed") for each in records)
