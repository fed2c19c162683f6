"""What a pruned model learns from the dense one: its distribution, its states, the text that it writes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import find_sublayers
from lit_prune.healing.rollouts import continued
from lit_prune.loading.sources import in_chat
from lit_prune.measure import predicts
from lit_prune.plan import Distillation

USERS_WORDS = "what-the-user-says"
POSITIONS_AT_A_TIME = 64


def distillation_loss(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean KL(teacher, student) in nats of logits [positions, vocab], times temperature² as in arXiv 1503.02531."""
    # A few positions at a time, computed again in the backward pass: float32 distributions of all of them would be the
    # largest tensors of the training.
    pairs = zip(*(torch.split(logits, POSITIONS_AT_A_TIME) for logits in (teacher, student)), strict=True)
    sums: list[Tensor] = [checkpoint(_divergence, *pair, temperature, use_reentrant=False) for pair in pairs]
    return torch.stack(sums).sum() / max(len(student), 1) * temperature**2


def _divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    log_p, log_q = (F.log_softmax(logits.float() / temperature, dim=-1) for logits in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _relative_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared distance of hidden states [..., hidden], relative to the teacher's squared length."""
    distances = (student.float() - teacher.float()).square().sum(dim=-1)
    return (distances / teacher.float().square().sum(dim=-1).clamp(min=1e-6)).mean()


def taught_loss(
    settings: Distillation, taught: Any, out: Any, labels: Tensor, *, text: Tensor | None, student: nn.Module
) -> Tensor:
    """The loss of a batch that a teacher has seen as well, which the settings mix from its parts.

    Both outputs have `logits` [batch, seq, vocab], and `hidden_states` where they count. Where one of the labels
    [batch, seq] is -100, the position before it is left out. `text` is the mean token loss on the text itself, None
    where it has no weight.
    """
    share = settings.cross_entropy
    loss = torch.zeros((), device=out.logits.device)
    if text is not None and share > 0:
        loss = loss + share * text
    if share < 1:
        mask = predicts(labels)
        # Where one model has more rows of padding than the other, over the tokens that both have.
        width = min(taught.logits.shape[-1], out.logits.shape[-1])
        theirs, own = (logits[:, :-1, :width][mask] for logits in (taught.logits, out.logits))
        loss = loss + (1 - share) * distillation_loss(theirs, own, settings.temperature)
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
    opening = dialogue_opening(tokenizer)[: window - 1]
    dialogues = num_windows // 2 if opening else 0
    generator = torch.Generator().manual_seed(seed)
    sampled: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    parts = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for number, begin in ((num_windows - dialogues, [] if bos is None else [bos]), (dialogues, opening)):
            for first in range(0, number, batch_size):
                rows = min(batch_size, number - first)
                drawn = torch.randint(num_tokens, (rows, 1), generator=generator)
                start = torch.tensor(begin).expand(rows, -1) if begin else drawn
                parts.append(continued(model, start, window, num_tokens=num_tokens, batch_size=batch_size, **sampled))
    return torch.cat(parts)[torch.randperm(num_windows, generator=generator)]


def dialogue_opening(tokenizer: Any) -> list[int]:
    """Tokens of a chat template up to where the user speaks; empty without a template."""
    if getattr(tokenizer, "chat_template", None) is None:
        return []
    text: str = in_chat(tokenizer, [{"role": "user", "content": USERS_WORDS}], tokenize=False)
    before, found, _ = text.partition(USERS_WORDS)
    ids: list[int] = tokenizer(before, add_special_tokens=False)["input_ids"] if found else []
    return ids
