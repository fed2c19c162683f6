"""What a batch holds, what the model is given of it, and how it is cut into sequences."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lit_prune.errors import DataError

IGNORED = -100
"""The label of a token that nothing is to predict, as in transformers."""
COMMON_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
"""The entries that a model is given whose `forward` does not name what it takes."""
NOT_INPUTS = ("labels", "past_key_values", "use_cache", "inputs_embeds", "logits_to_keep")
"""Arguments of `forward` that the measure decides, or that stand for the tokens."""
UNKNOWN = -1
"""The axis of an input of which nobody knows what belongs to which sequence."""


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """The labels to score, int64 [batch, seq]: the batch's own, else its tokens; padding is masked.

    Raises:
        DataError: The batch has no `input_ids`, or labels of another shape.
    """
    ids = input_ids_of(batch)
    labels = batch.get("labels")
    labels = ids if labels is None else labels
    if not isinstance(labels, Tensor) or labels.shape != ids.shape:
        found = list(labels.shape) if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise DataError(f"`labels` must be a tensor [batch, seq] as `input_ids`, {list(ids.shape)}; found {found}")
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == labels.shape:
        return labels.long().masked_fill(mask == 0, IGNORED)
    return labels.long()


def predicts(labels: Tensor) -> Tensor:
    """Which positions predict a label, the next one: bool [batch, seq - 1] of labels [batch, seq].

    Example:
        >>> predicts(torch.tensor([[5, 6, IGNORED]]))
        tensor([[ True, False]])
    """
    return labels[:, 1:] != IGNORED


def next_labels(labels: Tensor) -> Tensor:
    """What every position predicts, [batch, seq] of labels [batch, seq]; the last one predicts nothing."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def input_ids_of(batch: Any) -> Tensor:
    """The `input_ids` of a batch, int64 [batch, seq], of whatever integer dtype they are in it.

    Raises:
        DataError: It is no mapping with `input_ids`; the message says what it is.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        found = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise DataError(f"a batch must be a dict with `input_ids` [batch, seq]; found {found}")
    ids = batch["input_ids"]
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        found = str(list(ids.shape)) if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise DataError(f"`input_ids` must be a tensor [batch, seq]; found {found}")
    if not _is_integer(ids):
        raise DataError(f"`input_ids` must be whole numbers; found {ids.dtype}")
    return ids.long()


def model_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the model is called with: all tensors of a batch that its `forward` takes, but labels.

    Raises:
        DataError: The batch has no `input_ids`, or embeddings beside them.
    """
    ids, names = input_ids_of(batch), _taken(model)
    if batch.get("inputs_embeds") is not None:
        raise DataError("a batch has `inputs_embeds`, which stand for the tokens; give `input_ids` alone")
    wanted = {name: value for name, value in batch.items() if name in names and name not in NOT_INPUTS}
    held = tensors_of(wanted)
    # Some embeddings know int64 alone.
    numbered = {name: value.long() for name, value in held.items() if name.endswith("_ids") and _is_integer(value)}
    return {**held, **numbered, "input_ids": ids}


def read_batches(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the model takes of each batch, and its labels; batches that were read before come out as they are.

    Raises:
        DataError: A batch has no `input_ids`, or they or its labels cannot be used.
    """
    return [{**model_inputs(model, batch), "labels": labels_of(batch)} for batch in batches]


def tensors_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that are tensors, or hold some."""
    return {
        name: value for name, value in batch.items() if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
    }


def on_device(batch: Any, device: torch.device) -> dict[str, Any]:
    """The tensors of a batch on the model's device.

    Raises:
        DataError: It is no mapping with `input_ids` [batch, seq].
    """
    input_ids_of(batch)
    moved: dict[str, Any] = tree_map_only(Tensor, lambda tensor: tensor.to(device), tensors_of(batch))
    return moved


def is_divisible(batch: Mapping[str, Any]) -> bool:
    """Whether it is known of every input which part belongs to which sequence; for images it is not."""
    ids = input_ids_of(batch)
    return all(_axis(name, value, ids) != UNKNOWN for name, value in batch.items())


def rows_of(batch: Mapping[str, Any], rows: slice) -> Mapping[str, Any]:
    """Some sequences of a batch, which must be divisible unless all of them are meant."""
    if rows == slice(0, len(input_ids_of(batch))):
        return batch
    return _changed(batch, lambda part: part[rows])


def repeated(batch: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The sequences of a divisible batch, all of them `number` times, one copy below the other."""
    return _changed(batch, lambda part: torch.cat([part] * number))


def _changed(batch: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A divisible batch whose inputs are changed along their sequences."""
    ids, changed = input_ids_of(batch), {}
    for name, value in batch.items():
        axis = _axis(name, value, ids)
        changed[name] = value if axis is None else change(value.movedim(axis, 0)).movedim(0, axis)
    return changed


def _axis(name: str, value: Any, ids: Tensor) -> int | None:
    """Along which a batch's sequences lie in an input: None where all share it, UNKNOWN where it could be either."""
    if not isinstance(value, Tensor):
        return UNKNOWN
    num, length = ids.shape
    positions, masks = name in ("position_ids", "cache_position"), name == "attention_mask"
    if positions and value.ndim == 3 and value.shape[1:] == ids.shape:
        return 1  # several axes: [3, batch, seq] for text, height and width
    if value.shape[:2] == (num, length) or ((masks or name == "labels") and value.ndim > masks and len(value) == num):
        return 0
    shared = value.ndim == 0 or (positions and value.shape[-2:-1] in ((), (1,))) or (masks and len(value) == 1)
    return None if shared else UNKNOWN


def _is_integer(value: Any) -> bool:
    numbers = isinstance(value, Tensor) and value.dtype != torch.bool
    return numbers and not (value.is_floating_point() or value.is_complex())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _taken(model: nn.Module) -> tuple[str, ...]:
    own = vars(model).get("forward")  # accelerate puts one on the object
    names = _names(type(model).forward) if own is None else tuple(inspect.signature(own).parameters)
    return names if "input_ids" in names else COMMON_INPUTS


@functools.cache
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)
