"""Text that a pruned model writes itself, for its teacher to correct where it would repeat itself, or end early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_prune.measure import on_device
from lit_prune.surgery import evaluating

NO_TOKEN = -1
LOOP = 12
"""Tokens in a row that repeat what stands before them, all at one distance, are a loop."""
FARTHEST = 96
"""Tokens back at which a loop is looked for."""


def continued(model: Any, start: Tensor, length: int, *, batch_size: int = 32, **how: Any) -> Tensor:
    """Let a model go on with beginnings [rows, tokens] up to a length, LongTensor [rows, length] on the CPU.

    It goes on behind what ends a text, too. `how` are further options of transformers' `generate`; greedily by default.
    """
    rows = []
    with evaluating(model):
        for part in torch.split(start, batch_size):
            inputs = on_device({"input_ids": part, "attention_mask": torch.ones_like(part)}, model.device)
            # No token ends it. Forbidding that token instead would teach that a text never ends.
            options = {"eos_token_id": NO_TOKEN, "pad_token_id": 0, "do_sample": False, **how}
            rows.append(model.generate(**inputs, max_new_tokens=length - part.shape[1], **options).cpu())
    return torch.cat(rows)


def loop_begins(tokens: Tensor) -> int:
    """The place in tokens [length] at which they begin to repeat themselves; their number where they do not.

    Example:
        >>> loop_begins(torch.tensor([7, 8, *range(20), *[1, 2, 3] * 6]))
        25
    """
    first = len(tokens)
    for distance in range(1, min(FARTHEST, len(tokens) - LOOP) + 1):
        runs = (tokens[distance:] == tokens[:-distance]).unfold(0, LOOP, 1).all(dim=-1)
        if runs.any():
            first = min(first, int(runs.to(torch.int8).argmax()) + distance)
    return first


class Rollouts:
    """Windows of training text, a share of which the model itself goes on with from their beginnings on.

    A teacher then says at each of its own words what it should have said there: distillation on what the student writes
    (GKD, arXiv 2306.13649), as short as it makes sense (ShortOPD, arXiv 2607.13124): what is behind the beginning of a
    loop is not learned, since there the teacher goes on with it too.

    Args:
        windows: The windows, LongTensor [num_windows, window].
        share: The share of them that the model goes on with.
        prompt: The number of tokens that are kept at the beginning of such a window.
    """

    def __init__(self, windows: Tensor, share: float, prompt: int) -> None:
        self.windows = windows.clone()
        self._original, self._share, self._prompt = windows, share, prompt

    def renew(self, model: Any, numbers: Sequence[int]) -> None:
        """Let a model go on with its share of some windows, and make the others what they were."""
        rows = torch.tensor(numbers)
        self.windows[rows] = self._original[rows]
        own = torch.tensor([int((place + 1) * self._share) > int(place * self._share) for place in range(len(rows))])
        if not own.any():
            return
        start = self._original[rows[own], : self._prompt]
        written = continued(model, torch.where(start < 0, ~start, start), self._original.shape[1])
        for number, row in zip(rows[own].tolist(), written, strict=True):
            end = self._prompt + loop_begins(row[self._prompt :]) + LOOP
            row[end:] = ~row[end:]
            self.windows[number] = row
