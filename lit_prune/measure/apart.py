"""Whether a model keeps the documents of a window apart where its positions begin again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.errors import DataError
from lit_prune.measure.batches import model_inputs
from lit_prune.surgery import evaluating

LENGTH = 6
"""Tokens of each of two documents that are tried."""


def begins_again(batch: Mapping[str, Any]) -> bool:
    """Whether positions begin again at 0 within a sequence of a batch: then it holds several documents.

    Those of several axes, [3, batch, seq], are places in an image, and may go back.
    """
    positions = batch.get("position_ids")
    if not isinstance(positions, Tensor) or positions.ndim != 2:
        return False
    return bool(((positions.diff(dim=-1) < 0) & (positions[:, 1:] == 0)).any())


def require_apart(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
    """Refuse batches with several documents in a sequence for a model whose later ones see the earlier ones.

    transformers tells documents apart by positions that begin again, in models that make their masks by its functions.
    Others see everything in front of them, and so do states that run through a sequence. Two short passes try it.

    Raises:
        DataError: Another first document changes what the model says of the second.
    """
    device = next(model.parameters()).device
    if device.type == "meta" or not any(map(begins_again, batches)):
        return
    second = torch.arange(1, LENGTH + 1, device=device)
    places = torch.arange(LENGTH, device=device).repeat(2)[None]
    found = []
    for first in (second, second.flip(0)):
        batch = {"input_ids": torch.cat([first, second])[None], "position_ids": places}
        with evaluating(model):
            found.append(model(**model_inputs(model, batch), use_cache=False).logits[0, LENGTH:])
    one, other = found
    if float((one - other).abs().max()) > 1e-2 * float(one.abs().max()):
        raise DataError(
            f"a {type(model).__name__} does not keep several documents in one sequence apart by their positions; give "
            "one document a sequence, or leave by_document out"
        )
