"""What may not come from strangers' files: code, other files of this machine, models that fill the memory.

Holds for `lit_prune.load` and everything above it, and for checkpoints. With `trust_remote_code` the code that comes
with a model may run, and nothing else changes. The page on security has all of it.
"""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from transformers import PreTrainedConfig

from lit_prune.errors import ModelError
from lit_prune.loading.sources import Source
from lit_prune.plan import MAX_BLOCKS

INDEXES = "*.index.json"
"""Files that say which file holds which weights."""
COUNTS = ("layer", "block", "expert")
"""Numbers in a config that become modules have one of these in their name."""
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
METADATA = ".metadata"
RECORDS = "torch.distributed.checkpoint.metadata"
"""The module whose own classes a distributed checkpoint's metadata is made of, beside `OTHERS` and dtypes."""
OTHERS = (
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),  # as Python 3.13 writes it
    ("pathlib._local", "WindowsPath"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
)


def require_harmless(source: Source) -> None:
    """Refuse with a ModelError a model whose files ask for what no model may have, before anything is made of them.

    That is weights outside of its folder, kernels that would be fetched, and too many blocks.
    """
    if source.gguf_file is not None:
        return  # one file, without code
    if source.is_local:
        _require_inside(source)
    try:
        config, _ = PreTrainedConfig.get_config_dict(source.location, revision=source.revision)
    except RecursionError as error:
        raise ModelError(f"cannot load the config of {source.label}: it is nested too deeply") from error
    for name, value in _entries(config):
        if name in KERNELS and "/" in str(value) and not source.trusted:
            raise ModelError(
                f"the config of {source.label} names the kernel {value!r}, which is code from the hub; take it out of "
                "the config, or allow it by trust_remote_code"
            )
        too_many = type(value) is int and value > MAX_BLOCKS and any(count in name for count in COUNTS)
        if too_many and not name.endswith(("_size", "_dim", "_id")):
            raise ModelError(f"the config of {source.label} says {name} = {value:,}; no model has over {MAX_BLOCKS:,}")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The hyperparameters in a Lightning checkpoint, as plain data; weights stay on disk.

    A ModelError says that the file would run code, is no checkpoint, or its hyperparameters name classes.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        settings = dict(found.get("hyper_parameters") or {})
    except pickle.UnpicklingError as error:  # torch's own message tells how to run it
        raise ModelError(
            f"{path} holds more than tensors and plain data, which may be code; it is not loaded"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path} is no Lightning checkpoint: {_first_line(error)}") from error
    settings.pop("_instantiator", None)
    if any(name in ("class_path", "_class_path") for name, _ in _entries(settings)):
        raise ModelError(f"the hyperparameters in {path} name classes to import; a checkpoint of lit-prune names none")
    return settings


def require_plain_metadata(folder: str | Path) -> None:
    """Refuse with a ModelError a distributed checkpoint whose metadata holds anything but torch's own records.

    Torch reads that file as an unrestricted pickle. What is no folder of such a checkpoint is let through.
    """
    path = Path(folder) / METADATA
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            _Records(file).load()
    except (OSError, ValueError, TypeError, AttributeError, EOFError, ImportError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} is no metadata of a distributed checkpoint: {_first_line(error)}") from error


class _Records(pickle.Unpickler):
    """Makes torch's records of a distributed checkpoint, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "pathlib._local" and sys.version_info < (3, 13):
            raise pickle.UnpicklingError("Python 3.13 wrote it, and older ones cannot read it; take 3.13 or later")
        if (module, name) in OTHERS or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        found = super().find_class(module, name) if module == RECORDS and "." not in name else None
        if not isinstance(found, type) or found.__module__ != RECORDS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found


def _require_inside(source: Source) -> None:
    for path in sorted(Path(source.location).glob(INDEXES)):
        try:
            places = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path.name} of {source.label} is no index of weights: {error!r}") from error
        for place in dict.fromkeys(map(str, places)):
            forms = (PurePosixPath(place), PureWindowsPath(place))
            if any(form.is_absolute() or form.drive or ".." in form.parts for form in forms):
                raise ModelError(f"{path.name} of {source.label} names weights outside of the folder: {place}")


def _entries(data: Any) -> Iterator[tuple[str, Any]]:
    """Every name with its value, of mappings inside too."""
    waiting = [data]
    while waiting:
        data = waiting.pop()
        if isinstance(data, Mapping):
            yield from ((str(name), value) for name, value in data.items())
            waiting += data.values()
        elif isinstance(data, list | tuple):
            waiting += data


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).strip().partition("\n")[0]
