"""Which models other runtimes compute as transformers does. What their graphs do not read is refused by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lit_prune.anatomy import Record
from lit_prune.errors import ModelError
from lit_prune.export.targets import KIN, SERVED_ACTIVATIONS, SERVED_INERT, SERVED_READ

ELSEWHERE = (
    "export as hf-zeroed, which the usual converters (llama.cpp's convert_hf_to_gguf.py) and servers take, at the "
    "price of the dense model"
)


def require_served(model: PreTrainedModel, target: str, positions: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse with a ModelError what computes otherwise than a runtime, `target` by name, does.

    `positions` are the kinds of rotary positions that it computes, with the settings of them that it reads.
    """
    config = model.config
    if config.model_type not in KIN:
        raise ModelError(f"{target} computes as {', '.join(KIN)} do, not as {config.model_type}; {ELSEWHERE}")
    if not type(model).__module__.startswith(("transformers.models.", "lit_prune.")):
        raise ModelError(
            f"{target} computes as transformers' own {config.model_type} does; what {type(model).__name__} of "
            f"{type(model).__module__} does otherwise is not known; {ELSEWHERE}"
        )
    if getattr(config, "sliding_window", None):
        raise ModelError(f"{target} knows no sliding window, and this model has one of {config.sliding_window}")
    if Record.of(config).biases:
        raise ModelError(
            f"{target} has no place for the biases that a compensation folded in; export as hf-remote-code"
        )
    if config.hidden_act not in SERVED_ACTIVATIONS:
        raise ModelError(f"{target} computes {SERVED_ACTIVATIONS[0]}, not {config.hidden_act}; {ELSEWHERE}")
    if unread := _unread(config):
        raise ModelError(f"{target} does not read {', '.join(unread)} of the config; {ELSEWHERE}")
    _require_positions(config.rope_parameters or {}, target, positions)


def _unread(config: Any) -> list[str]:
    """Settings of the config's own class that nobody reads and that are not as ever."""
    plain, kin = type(config)(), KIN[config.model_type]
    known = (*SERVED_READ, *SERVED_INERT, *kin.inert, *(setting for setting, *_ in kin.multipliers))
    return [
        f"{field.name} = {getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in known and getattr(config, field.name) != getattr(plain, field.name)
    ]


def _require_positions(rope: Mapping[str, Any], target: str, positions: Mapping[str, tuple[str, ...]]) -> None:
    kind = rope.get("rope_type", "default")
    if kind not in positions:
        raise ModelError(
            f"rotary positions of the type {kind} are not written for {target}; {', '.join(positions)} are; {ELSEWHERE}"
        )
    read = ("rope_type", "type", "rope_theta", *positions[kind])
    other = [
        f"{name} = {value!r}"
        for name, value in rope.items()
        if name not in read and value is not None and (name, value) != ("partial_rotary_factor", 1)
    ]
    if other:
        raise ModelError(f"{target} does not read {', '.join(other)} of rotary positions; {ELSEWHERE}")
