"""Text that a pruned model writes itself, for its teacher to correct where it would repeat itself, or end early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lit_prune.healing.teacher import Teacher
from lit_prune.measure import on_device
from lit_prune.surgery import evaluating

NO_TOKEN = 2**31 - 1
PROMPT = 48
"""Tokens at the beginning of a window that a model goes on with."""
LENGTH = 64
"""Tokens that it writes, where it is compared with the dense model."""
NGRAM = 4
PLAIN = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
"""Greedily, whatever the model's own generation config says."""
LOOP = 12
"""Tokens in a row that repeat what stands before them, all at one distance, are a loop."""
FARTHEST = 96
"""Tokens back at which a loop is looked for."""


def continued(
    model: Any, start: Tensor, length: int, *, num_tokens: int | None = None, batch_size: int = 32, **how: Any
) -> Tensor:
    """Let a model go on with beginnings [rows, tokens] up to a length, LongTensor [rows, length] on the CPU.

    It goes on behind what ends a text, too, and writes the first `num_tokens` of its tokens alone. `how` are further
    options of transformers' `generate`; greedily by default.
    """
    rows, own = [], model.get_output_embeddings().weight.shape[0]
    padding = [*range(num_tokens or own, own)] or None
    with evaluating(model):
        for part in torch.split(start, batch_size):
            inputs = on_device({"input_ids": part, "attention_mask": torch.ones_like(part)}, model.device)
            # No token ends it. Forbidding that token instead would teach that a text never ends.
            options = {"eos_token_id": NO_TOKEN, "pad_token_id": 0, "suppress_tokens": padding, **PLAIN}
            rows.append(model.generate(**inputs, max_new_tokens=length - part.shape[1], **{**options, **how}).cpu())
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


@dataclass(frozen=True)
class Manners:
    """How a model goes on with text, greedily.

    Attributes:
        repetition: Mean share of the 4-grams of tokens that stand earlier in what the model wrote already.
        ended: Share of the texts in which a token that ends a text comes within the limit.
        agreement: Share of the positions in what the teacher wrote where the model's likeliest token is the teacher's;
            1 for the teacher itself, None without one.
    """

    repetition: float
    ended: float
    agreement: float | None = None

    def worse(self, other: Manners) -> float:
        """By which shares this model repeats itself more, and ends more texts, than another, in sum."""
        return max(0.0, self.repetition - other.repetition) + max(0.0, self.ended - other.ended)


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams that stand earlier in the same text already."""
    grams = [tuple(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class Examination:
    """Beginnings of texts that models go on with, to see their manners beside their teacher's.

    Args:
        windows: Windows of text, LongTensor [num_windows, window], long enough for a prompt and something behind it.
        teacher: The teacher; None where there is none.
    """

    def __init__(self, windows: Tensor, teacher: Teacher | None = None) -> None:
        self._start = torch.where(windows < 0, ~windows, windows)[:, : min(PROMPT, windows.shape[1] // 2)]
        self._length = min(self._start.shape[1] + LENGTH, windows.shape[1])
        self._taught: Tensor | None = None
        self.teachers: Manners | None = None
        if teacher is not None:
            with teacher.teaching() as model:
                width = teacher.student.get_output_embeddings().weight.shape[0]
                self._taught = continued(model, self._start, self._length, num_tokens=width)
                self.teachers = replace(self._seen(model, self._taught), agreement=1.0)

    def of(self, model: Any) -> Manners:
        """The manners of a model."""
        found = self._seen(model, continued(model, self._start, self._length))
        return found if self._taught is None else replace(found, agreement=self._agreement(model, self._taught))

    def _seen(self, model: Any, texts: Tensor) -> Manners:
        rows, ends = texts[:, self._start.shape[1] :].tolist(), ends_of(model)
        repeated = [repetition(row[: next((n for n, token in enumerate(row) if token in ends), None)]) for row in rows]
        return Manners(fmean(repeated), fmean(not ends.isdisjoint(row) for row in rows))

    def _agreement(self, model: Any, taught: Tensor) -> float:
        begin, same = self._start.shape[1], []
        with evaluating(model), torch.no_grad():
            for part in torch.split(taught, 8):
                logits = model(**on_device({"input_ids": part}, model.device), use_cache=False).logits
                same.append((logits[:, begin - 1 : -1].argmax(dim=-1).cpu() == part[:, begin:]).float())
        return float(torch.cat(same).mean())


def ends_of(model: Any) -> set[int]:
    """The tokens that end a text."""
    found = model.generation_config.eos_token_id
    return {*found} if isinstance(found, list) else {found} - {None}


class Rollouts:
    """Windows of training text, a share of which the model itself goes on with from their beginnings on.

    A teacher then says at each of its own words what it should have said there: distillation on what the student writes
    (GKD, arXiv 2306.13649), as short as it makes sense (ShortOPD, arXiv 2607.13124): what is behind the beginning of a
    loop is not learned, since there the teacher goes on with it too.

    Args:
        windows: The windows, LongTensor [num_windows, window].
        share: The share of them that the model goes on with.
    """

    def __init__(self, windows: Tensor, share: float) -> None:
        self.windows = windows.clone()
        self._original, self._share, self._prompt = windows, share, min(PROMPT, windows.shape[1] // 2)

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
