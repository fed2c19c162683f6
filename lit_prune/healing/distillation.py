"""What a pruned model learns from the dense one: its distribution, its states, the text that it writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import find_sublayers
from lit_prune.healing.rollouts import continued
from lit_prune.loading.sources import in_chat
from lit_prune.measure import IGNORED, in_parts, next_labels
from lit_prune.plan import Distillation

USERS_WORDS = "what-the-user-says"
SAMPLED: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
"""From the model's own distribution, whatever its generation config says."""


def distillation_loss(
    teacher: Tensor,
    student: Tensor,
    temperature: float = 1.0,
    *,
    targets: Tensor | None = None,
    cross_entropy: float = 0.0,
) -> Tensor:
    """Mean KL(teacher, student) in nats of logits [positions, vocab], times temperature² as in arXiv 1503.02531.

    Where one has more rows of padding than the other, it is over the tokens that both have.

    Args:
        teacher: Logits of the teacher, without gradients.
        student: Logits of the student.
        temperature: The temperature of both distributions.
        targets: The tokens that follow, LongTensor [positions], -100 at positions that do not count; all do by default.
        cross_entropy: The weight of the student's mean loss on the targets, from 0 to 1; the divergence has the rest.
    """
    targets = torch.zeros(len(student), dtype=torch.long, device=student.device) if targets is None else targets
    loss: Tensor = _Divergence.apply(student, teacher, targets, temperature, cross_entropy)  # type: ignore[no-untyped-call]
    return loss


class _Divergence(torch.autograd.Function):
    """`distillation_loss`, whose gradient is computed beside it, a few positions at a time.

    Distributions of all positions in float32 would be the largest tensors of a training, and, on a CPU, half its time.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, share: float
    ) -> Tensor:
        wide = torch.promote_types(student.dtype, torch.float32)
        counted = targets != IGNORED
        width = min(student.shape[-1], teacher.shape[-1])
        loss, gradient = torch.zeros((), dtype=wide, device=student.device), torch.zeros_like(student)
        parts = in_parts(student, teacher, targets.clamp(min=0), counted.to(wide), gradient)
        for own, theirs, target, weight, found in parts:
            log_p, log_q = (
                F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1, dtype=wide)
                for logits in (theirs[:, :width], own[:, :width])
            )
            p, q = log_p.exp(), log_q.exp()
            loss += (1 - share) * temperature**2 * (p * (log_p - log_q)).sum(dim=-1) @ weight
            change = q.sub_(p).mul_((1 - share) * temperature * weight[:, None])
            if share > 0:
                is_same = temperature == 1 and width == own.shape[-1]
                log_q = log_q if is_same else F.log_softmax(own, dim=-1, dtype=wide)
                loss -= share * log_q.gather(1, target[:, None])[:, 0] @ weight
                text = log_q.exp().mul_(share * weight[:, None])
                text.scatter_add_(1, target[:, None], -share * weight[:, None])[:, :width] += change
                change = text
            found[:, : change.shape[-1]] = change
        number_counted = counted.sum().clamp(min=1)
        # The gradient is that of the sum: in half precision the mean's is too small until a scaler enlarges it.
        ctx.save_for_backward(gradient, number_counted)
        return loss / number_counted

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradient, number = ctx.saved_tensors
        return gradient * (outer[0] / number), None, None, None, None


def _relative_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared distance of hidden states [..., hidden], relative to the teacher's squared length."""
    distances = (student.float() - teacher.float()).square().sum(dim=-1)
    return (distances / teacher.float().square().sum(dim=-1).clamp(min=1e-6)).mean()


def taught_loss(
    settings: Distillation, taught: Any, out: Any, labels: Tensor, *, text: Tensor | None, student: nn.Module
) -> Tensor:
    """The loss of a batch that a teacher has seen as well, which the settings mix from its parts.

    Both outputs have `logits` [batch, seq, vocab], and `hidden_states` where they count. Where one of the labels
    [batch, seq] is -100, the position before it is left out. `text` is what the text itself is to cost; None stands for
    the mean token loss.
    """
    share = settings.cross_entropy
    loss = torch.zeros((), device=out.logits.device)
    if text is not None and share > 0:
        loss = loss + share * text
    if share < 1 or text is None:
        theirs, own = (logits.flatten(0, 1) for logits in (taught.logits, out.logits))
        learned = distillation_loss(
            theirs,
            own,
            settings.temperature,
            targets=next_labels(labels).flatten(),
            cross_entropy=share if text is None else 0.0,
        )
        loss = loss + (learned if text is None else (1 - share) * learned)
    cuts = _cut_states(student) if settings.hidden > 0 else []
    if cuts:
        distances = [_relative_distance(taught.hidden_states[cut], out.hidden_states[cut]) for cut in cuts]
        loss = loss + settings.hidden * torch.stack(distances).mean()
    return loss


def _cut_states(model: nn.Module) -> list[int]:
    """Entries of a model's `hidden_states` behind blocks that have lost something."""
    anatomy = find_sublayers(model)
    lost = {sublayer.block for sublayer in anatomy.removed if sublayer in anatomy.paths}
    # The state behind the block at position p is the entry p + 1.
    return [anatomy.position(block) + 1 for block in sorted(lost)]


def written_windows(
    model: PreTrainedModel,
    num_windows: int,
    window: int,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Tensor:
    """Text that a model writes by itself, sampled from its own distribution, LongTensor [num_windows, window].

    It goes on behind its end of text with what it was trained on: another document, or the next turn of a dialogue.

    Args:
        model: The dense model.
        num_windows: The number of windows that are wanted.
        window: The tokens in a window; the first is the model's BOS, or drawn at random where it has none.
        tokenizer: The model's tokenizer, whose tokens alone are written. Where it has a chat template, every second
            window begins as a dialogue, at the point where the user speaks (Magpie, Xu et al. 2024,
            https://arxiv.org/abs/2406.08464).
        batch_size: The number of windows that are written at a time.
        seed: The seed of the draws.
    """
    config = model.config.get_text_config(decoder=True)
    bos, num_tokens = config.bos_token_id, config.vocab_size
    if tokenizer is not None:
        num_tokens = min(num_tokens, len(tokenizer))  # what is padding has no text
    opening = _around_user(tokenizer)[0][: window - 1]
    dialogues = num_windows // 2 if opening else 0
    generator = torch.Generator().manual_seed(seed)
    parts = []
    with _seeded(model, seed):
        for number, begin in ((num_windows - dialogues, [] if bos is None else [bos]), (dialogues, opening)):
            for first in range(0, number, batch_size):
                rows = min(batch_size, number - first)
                drawn = torch.randint(num_tokens, (rows, 1), generator=generator)
                start = torch.tensor(begin).expand(rows, -1) if begin else drawn
                parts.append(continued(model, start, window, num_tokens=num_tokens, batch_size=batch_size, **SAMPLED))
    return torch.cat(parts)[torch.randperm(num_windows, generator=generator)]


def written_requests(
    model: PreTrainedModel,
    num_requests: int,
    *,
    tokenizer: PreTrainedTokenizerBase,
    most: int = 64,
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor | None:
    """What a model writes where the user speaks, up to the point where it is to answer, LongTensor [requests, length].

    In the model's chat template, None where it has none; -1 stands in front of those that are shorter. Sampled from its
    own distribution (Magpie, https://arxiv.org/abs/2406.08464). A request that does not end within `most` tokens is
    left out, so there may be fewer than `num_requests`, and None where none ends.
    """
    opening, behind = _around_user(tokenizer)
    if not opening or not behind:
        return None
    num_tokens = min(model.config.get_text_config(decoder=True).vocab_size, len(tokenizer))
    start = torch.tensor(opening).expand(num_requests, -1)
    with _seeded(model, seed):
        most += len(opening)
        rows = continued(model, start, most, num_tokens=num_tokens, batch_size=batch_size, **SAMPLED)
    found = []
    for row in rows:
        ends = (row[len(opening) :] == behind[0]).nonzero()
        if len(ends) and ends[0] > 0:
            found.append(torch.cat([row[: len(opening) + int(ends[0])], torch.tensor(behind)]))
    return pad_sequence(found, batch_first=True, padding_value=-1, padding_side="left") if found else None


@contextmanager
def _seeded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Draws on the CPU and the model's device by a seed, in a `with` block that leaves those behind it as they are."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _around_user(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of a chat template up to where the user speaks, and from there to the answer; empty without a template."""
    if getattr(tokenizer, "chat_template", None) is None:
        return [], []
    asked = [{"role": "user", "content": USERS_WORDS}]
    text: str = in_chat(tokenizer, asked, tokenize=False, add_generation_prompt=True)
    before, found, behind = text.partition(USERS_WORDS)
    parts = (before, behind) if found else ("", "")
    opening, answer = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
    return opening, answer
