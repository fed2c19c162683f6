"""What a command line names is looked for in one place, by the names of its options, before any verb begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from lit_prune.errors import LitPruneError

SELF = "self"
"""The name of the text that a model writes."""


def require_there(settings: Mapping[str, Any]) -> None:
    """Refuse models, texts, files, devices and data types that are not there, or that nothing can be made of.

    A verb would tell of them too, of some after an hour. Weights and texts are not read.

    Raises:
        LitPruneError: The message names what is missing.
    """
    options = [(name, value) for name, value in _options(settings) if value is not None]
    trusted = any(name == "trust_remote_code" and value for name, value in options)
    for check, names in CHECKS.items():
        for name, value in options:
            if name in names:
                check(value, trusted)


def require_texts(texts: str | Sequence[str], _: bool = False) -> None:
    """Refuse texts that are not there; what a model writes is always there."""
    from lit_prune.data import require_source

    for text in [texts] if isinstance(texts, str) else texts:
        if text != SELF:
            require_source(text)


def _options(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options by their names, those of groups too."""
    for name, value in settings.items():
        if is_dataclass(value) and not isinstance(value, type):
            yield from ((field.name, getattr(value, field.name)) for field in fields(value))
        else:
            yield name, value


def _require_model(name: str, trusted: bool) -> None:
    from lit_prune.loading.models import require_model

    require_model(name, trust_remote_code=trusted)


def _require_models(names: str, trusted: bool) -> None:
    from lit_prune.commands.arguments import model_names

    for name in model_names(names):
        _require_model(name, trusted)


def _require_gguf(name: str, _: bool) -> None:
    from lit_prune.loading.sources import locate

    locate(name)


def _require_device(device: str, _: bool) -> None:
    from lit_prune.loading.devices import require_device

    require_device(device)


def _require_dtype(dtype: str, _: bool) -> None:
    from lit_prune.loading.models import weights_dtype

    weights_dtype(dtype)


def _require_layout(layout: str, _: bool) -> None:
    from lit_prune.loading.sources import read_layout

    read_layout(layout)


def _require_place(path: str, _: bool) -> None:
    if not Path(path).expanduser().exists():
        raise LitPruneError(f"there is no {path}")


CHECKS: dict[Callable[[Any, bool], None], tuple[str, ...]] = {
    _require_device: ("device",),
    _require_dtype: ("dtype",),
    _require_layout: ("layout",),
    _require_place: ("prompts", "include_path"),
    require_texts: ("data", "texts", "unseen"),
    _require_gguf: ("tokenizer_from",),
    _require_model: ("model", "against", "dense", "before", "teacher"),
    _require_models: ("models",),
}
"""What is asked of options, by their names in every verb."""
