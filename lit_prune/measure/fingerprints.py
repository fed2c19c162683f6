"""Fingerprints of all that decides a loss: the weights, the network around them, and what it is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lit_prune.anatomy import language_model
from lit_prune.loading.digests import add_tensor, weights_digest
from lit_prune.measure.objective import objective_of

NAMES = ("_name_or_path", "_commit_hash", "transformers_version")
"""Entries of a config that say where a model is from."""
NO_SETTINGS = ("training", "gradient_checkpointing", "name_or_path")
"""Attributes of a module that decide nothing."""


def model_fingerprints(model: nn.Module) -> dict[str, str]:
    """Fingerprints of the `weights`, every number of them, and of the `network`: config, classes and their settings.

    Args:
        model: A causal language model. If it is sharded over processes, all of them must ask.
    """
    root = language_model(model)
    return {"weights": weights_digest(root)[:16], "network": _network(root)}


def inputs_fingerprint(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> str:
    """The fingerprint of all that a model takes of some batches, and of their labels."""
    digest = hashlib.sha256()
    for batch in objective_of(language_model(model)).read(batches):
        for name, value in sorted(batch.items()):
            leaves, form = tree_flatten(value)
            digest.update(f"{name}{form}".encode())
            for leaf in leaves:
                add_tensor(digest, leaf if isinstance(leaf, Tensor) else torch.tensor([]))
    return digest.hexdigest()[:16]


def _network(model: Any) -> str:
    modules = [[name, _named(type(module)), _settings(module)] for name, module in model.named_modules()]
    found = json.dumps([_without_names(model.config.to_dict()), modules], sort_keys=True, default=_named)
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def _settings(module: nn.Module) -> dict[str, Any]:
    """Numbers, words and functions that a module holds; accelerate wraps methods of what it spreads over devices."""
    plain = (bool, int, float, str, tuple, list, type(None))
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in NO_SETTINGS
        and (isinstance(value, plain) or (callable(value) and not hasattr(value, "__wrapped__")))
    }


def _named(value: Any) -> str:
    """What stands for a class, a function, or an object whose text would hold its address."""
    if isinstance(value, torch.dtype):
        return str(value)
    # FSDP2 makes classes of its own of those that it shards.
    return str(getattr(value, "__qualname__", type(value).__qualname__)).removeprefix("FSDP")


def _without_names(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {str(name): _without_names(value) for name, value in config.items() if name not in NAMES}
    return [_without_names(value) for value in config] if isinstance(config, list | tuple) else config
