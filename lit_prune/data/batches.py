"""Windows of tokens as batches that models take, and what identifies a set of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_prune.data.packing import batch_of_packed
from lit_prune.errors import DataError
from lit_prune.measure import IGNORED


def calibration_batches(windows: Tensor, batch_size: int) -> list[dict[str, Tensor]]:
    """Make batches of windows [num_windows, window] in the form that models take; the last one may have fewer.

    Raises:
        DataError: `batch_size` is below 1.
    """
    require_positive(batch_size=batch_size)
    return [batch_of(rows) for rows in torch.split(windows, batch_size)]


def fingerprint(batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Any]:
    """What identifies a set of tokens, however it is cut into batches and wherever it came from.

    Of `input_ids` and perhaps `labels` [batch, seq] of all batches, these are `num_sequences`, `num_tokens` (padding
    included) and `sha256`.

    Raises:
        DataError: A batch has no `input_ids`.
    """
    digest, num_sequences, num_tokens = hashlib.sha256(), 0, 0
    for batch in batches:
        if "input_ids" not in batch:
            raise DataError(f"a batch must have `input_ids` [batch, seq]; found {', '.join(batch) or 'nothing'}")
        ids, labels = batch["input_ids"], batch.get("labels")
        for index, row in enumerate(ids):
            digest.update(f"{len(row)}:".encode() + _bytes(row) + (b"" if labels is None else _bytes(labels[index])))
        num_sequences += ids.shape[0]
        num_tokens += ids.numel()
    return {"num_sequences": num_sequences, "num_tokens": num_tokens, "sha256": digest.hexdigest()}


def batch_of(rows: Tensor) -> dict[str, Tensor]:
    """Windows [batch, window] as a batch: `input_ids`, and `labels` of their own, -100 for a token kept as `~token`.

    Of windows with several documents it has `position_ids` as well.
    """
    found = batch_of_packed(rows)
    return {**found, "labels": torch.where(found.pop("hidden"), IGNORED, found["input_ids"])}


def require_positive(**numbers: int | None) -> None:
    """Refuse numbers below 1 by their names, with a DataError; None is no number."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise DataError(f"{name} is 1 or more; found {value}")


def _bytes(row: Tensor) -> bytes:
    return row.detach().to("cpu", torch.int64).contiguous().numpy().tobytes()
