"""Text that a pruned model writes itself, for its teacher to correct where it would repeat itself, or end early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_prune.data import batch_of, padded
from lit_prune.healing.teacher import Teacher
from lit_prune.measure import logits_of, on_device, sequence_losses
from lit_prune.surgery import evaluating

NO_TOKEN = 2**31 - 1
PROMPT = 48
"""Tokens at the beginning of a window that a model goes on with."""
LENGTH = 128
"""Tokens that it writes, where it is compared with the dense model; loops may begin late."""
ALIKE = 0.05
"""A share by which two models' manners may differ and count as alike: about the standard error of 32 texts."""
NGRAM = 4
PLAIN = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
"""Greedily, whatever the model's own generation config says."""
ROLLOUT = 160
"""Tokens that it writes, where loops are looked for."""
PAIRS = 4
"""Prompts of a step, behind each of which there may be a pair of continuations."""
TURN = 24
"""Tokens of a pair's continuations."""
MARGIN = 1.0
"""Nats of a token by which the teacher's continuation is to be likelier than the model's loop."""
LOOP = 12
"""Tokens in a row that repeat what stands before them, all at one distance, are a loop."""
FARTHEST = 96
"""Tokens back at which a loop is looked for."""


def continued(
    model: Any,
    start: Tensor,
    length: int,
    *,
    mask: Tensor | None = None,
    num_tokens: int | None = None,
    batch_size: int = 32,
    **how: Any,
) -> Tensor:
    """Let a model go on with beginnings [rows, tokens] up to a length, LongTensor [rows, length] on the CPU.

    It goes on behind what ends a text, too, and writes the first `num_tokens` of its tokens alone. The mask [rows,
    tokens] is 0 at padding in front. `how` are further options of transformers' `generate`; greedily by default.
    """
    rows, own = [], model.get_output_embeddings().weight.shape[0]
    mask = torch.ones_like(start) if mask is None else mask
    padding = [*range(num_tokens or own, own)] or None
    with evaluating(model), _last_states_alone(model):
        for part, seen in zip(torch.split(start, batch_size), torch.split(mask, batch_size), strict=True):
            inputs = on_device({"input_ids": part, "attention_mask": seen}, model.device)
            # No token ends it. Forbidding that token instead would teach that a text never ends.
            options = {"eos_token_id": NO_TOKEN, "pad_token_id": 0, "suppress_tokens": padding, **PLAIN}
            rows.append(model.generate(**inputs, max_new_tokens=length - part.shape[1], **{**options, **how}).cpu())
    return torch.cat(rows)


@contextmanager
def _last_states_alone(model: Any) -> Iterator[None]:
    """Give the head a copy of the last states, not a slice of all, in a `with` block.

    By a slice a CPU's PyTorch multiplies frozen weights as a batch of copies, one for every row: some hundred times as
    long.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def beginnings(windows: Tensor) -> list[Tensor]:
    """The first tokens of windows [num_windows, window], which models go on with."""
    return [*batch_of(windows)["input_ids"][:, : min(PROMPT, windows.shape[1] // 2)]]


def continued_apart(model: Any, starts: Sequence[Tensor], length: int, **how: Any) -> list[Tensor]:
    """What a model writes behind beginnings of several lengths, greedily, [length] each; as `continued`."""
    found = []
    for first in range(0, len(starts), 32):
        rows = starts[first : first + 32]
        longest = max(map(len, rows))
        padded = torch.stack([F.pad(row, (longest - len(row), 0)) for row in rows])
        mask = torch.stack([F.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
        found += [row[longest:] for row in continued(model, padded, longest + length, mask=mask, **how)]
    return found


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


def end_of(tokens: Tensor, ends: set[int]) -> int:
    """The place of the first token that ends a text; their number where there is none."""
    return next((place for place, token in enumerate(tokens.tolist()) if token in ends), len(tokens))


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
        """By which shares this model repeats itself more, and ends more texts, than another, in sum.

        Each counts where it is above `ALIKE`.
        """
        more = (self.repetition - other.repetition, self.ended - other.ended)
        return sum(max(0.0, share - ALIKE) for share in more)


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams that stand earlier in the same text already."""
    grams = [tuple(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class Examination:
    """Prompts that models go on with, to see their manners beside their teacher's.

    Args:
        prompts: Tokens that are gone on with, LongTensor [length] each.
        teacher: The teacher; None where there is none.
        length: The number of tokens that are written.
    """

    def __init__(self, prompts: Sequence[Tensor], teacher: Teacher | None = None, *, length: int = LENGTH) -> None:
        self._prompts, self._length = prompts, length
        self._taught: list[Tensor] | None = None
        self.teachers: Manners | None = None
        if teacher is not None:
            with teacher.teaching() as model:
                width = teacher.student.get_output_embeddings().weight.shape[0]
                self._taught = continued_apart(model, prompts, length, num_tokens=width)
                self.teachers = replace(_manners(model, self._taught), agreement=1.0)

    def of(self, model: Any) -> Manners:
        """The manners of a model."""
        found = _manners(model, continued_apart(model, self._prompts, self._length))
        return found if self._taught is None else replace(found, agreement=self._agreement(model, self._taught))

    def _agreement(self, model: Any, taught: Sequence[Tensor]) -> float:
        texts, same = [torch.cat(pair) for pair in zip(self._prompts, taught, strict=True)], []
        with evaluating(model), torch.no_grad():
            for first in range(0, len(texts), 8):
                # Padding behind a text changes nothing in it.
                rows = pad_sequence(texts[first : first + 8], batch_first=True)
                logits = model(**on_device({"input_ids": rows}, model.device), use_cache=False).logits
                likeliest = logits[:, :-1].argmax(dim=-1).cpu()
                for row, text in zip(likeliest, texts[first : first + 8], strict=True):
                    same.append((row[: len(text) - 1] == text[1:])[-self._length :].float())
        return float(torch.cat(same).mean())


def _manners(model: Any, texts: Sequence[Tensor]) -> Manners:
    stops = [end_of(text, ends_of(model)) for text in texts]
    repeated = [repetition(text[:stop].tolist()) for text, stop in zip(texts, stops, strict=True)]
    return Manners(fmean(repeated), fmean(stop < len(text) for text, stop in zip(texts, stops, strict=True)))


def ends_of(model: Any) -> set[int]:
    """The tokens that end a text."""
    found = model.generation_config.eos_token_id
    return {*found} if isinstance(found, list) else {found} - {None}


@dataclass(frozen=True)
class _Written:
    """What a model writes behind a prompt: where it ends, and where it begins to repeat itself before."""

    tokens: Tensor
    stop: int
    loop: int | None

    @classmethod
    def of(cls, tokens: Tensor, ends: set[int]) -> _Written:
        stop, begin = end_of(tokens, ends), loop_begins(tokens)
        return cls(tokens, stop, begin if begin < stop else None)

    @property
    def ended(self) -> bool:
        return self.stop < len(self.tokens)


class Repairs:
    """Pairs of continuations behind what the model wrote itself, up to where it begins to repeat itself, or ends.

    One is the teacher's, the other the model's own, and the loss of a pair is 0 once the teacher's is likelier by a
    margin: the model unlearns the way into a loop (RePAIR, arXiv 2608.26676). Where it does not repeat itself, or its
    teacher does so as well, there is nothing to learn, so the pairs grow fewer as it heals.

    Where the model ends more texts than its teacher, there are so many pairs behind texts that it ends first, too: the
    teacher's next token against the end.

    Args:
        prompts: Tokens that both go on with, LongTensor [length] each.
        teacher: The teacher.
        length: The number of tokens in which loops and ends are looked for.
    """

    def __init__(self, prompts: Sequence[Tensor], teacher: Teacher, *, length: int = ROLLOUT) -> None:
        self._prompts, self._teacher, self._length = prompts, teacher, length
        self._pairs: list[list[tuple[int, Tensor]]] = []

    def renew(self, model: Any, steps: int, *, seed: int) -> None:
        """Let a model and its teacher go on with prompts for so many steps, and the teacher where they part.

        They are drawn by a seed, `PAIRS` for each step, or fewer where there are not as many.
        """
        drawn = torch.randperm(len(self._prompts), generator=torch.Generator().manual_seed(seed))[: PAIRS * steps]
        prompts, ends = [self._prompts[place] for place in drawn.tolist()], ends_of(model)
        own = [_Written.of(row, ends) for row in continued_apart(model, prompts, self._length)]
        width = {"num_tokens": model.get_output_embeddings().weight.shape[0]}
        with self._teacher.teaching() as teaching:
            taught = [_Written.of(row, ends) for row in continued_apart(teaching, prompts, self._length, **width)]
            loops = [place for place, it in enumerate(own) if it.loop is not None and taught[place].loop is None]
            more = sum(it.ended for it in own) - sum(it.ended for it in taught)
            early = [place for place, it in enumerate(own) if it.loop is None and it.stop < taught[place].stop]
            faults = [(place, own[place].loop, TURN) for place in loops]
            faults += [(place, own[place].stop, 1) for place in early[: max(0, more)]]
            starts = [torch.cat([prompts[place], own[place].tokens[:begin]]) for place, begin, _ in faults]
            better = continued_apart(teaching, starts, TURN, **width)
        worse = [own[place].tokens[begin:][:turn] for place, begin, turn in faults]
        self._pairs = [[] for _ in range(steps)]
        for (place, _, _), start, good, bad in zip(faults, starts, better, worse, strict=True):
            pair = torch.stack([torch.cat([start, end]) for end in (good[: len(bad)], bad)])
            if not torch.equal(*pair):
                self._pairs[place % steps].append((len(start), pair))

    def loss(self, model: Any, step: int) -> Tensor | None:
        """The loss of a step's pairs, by its place among those that were renewed for; None where it has none.

        Of each it is max(0, margin + l(teacher's) - l(own)) with the mean token losses l of both, in nats, and of all
        the sum divided by `PAIRS`.
        """
        found = self._pairs[step] if step < len(self._pairs) else []
        if not found:
            return None
        batch = on_device(padded([(row, start) for start, pair in found for row in pair]), model.device)
        first = min(start for start, _ in found) - 1  # predicts the first label
        losses, tokens = sequence_losses(logits_of(model, batch)[:, first:], batch["labels"][:, first:])
        better, worse = (losses / tokens).float().view(-1, 2).unbind(dim=1)
        return F.relu(MARGIN + better - worse).sum() / PAIRS
