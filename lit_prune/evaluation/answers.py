"""What a model says: answers to questions of one turn or several, for reading before and after pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from lit_prune.evaluation.prompts import Prompt
from lit_prune.loading.sources import in_chat
from lit_prune.measure import on_device
from lit_prune.surgery import evaluating, is_sharded

SEPARATOR = "\n\n"
"""Between turns, where there is no chat template."""


@dataclass(frozen=True)
class Turn:
    """One answer: its text without special tokens, and the token ids that the model was given and that it wrote.

    The token that ends an answer is left out; `ended` tells whether it came before the limit.
    """

    text: str
    context: tuple[int, ...]
    tokens: tuple[int, ...]
    ended: bool


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, *, max_new_tokens: int = 64
) -> str:
    """Answer one question greedily: see `answers`."""
    return answers(model, tokenizer, [Prompt(1, (question,))], max_new_tokens=max_new_tokens)[0][0].text


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    batch_size: int = 8,
    seed: int = 0,
) -> list[list[Turn]]:
    """Answer questions turn by turn; the model's mode is restored afterwards.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer. With a chat template a question is put as a user's turn, else it is continued.
        prompts: The questions.
        max_new_tokens: Length limit of an answer, in tokens.
        temperature: Temperature of sampling; 0 is greedy.
        batch_size: Questions at a time, padded on the left.
        seed: Seed of the draws, the same for every batch.

    Returns:
        The answers to each question's turns.
    """
    said: list[list[Turn]] = [[] for _ in prompts]
    devices = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices=devices):
        for number in range(max((len(prompt.turns) for prompt in prompts), default=0)):
            unanswered = [place for place, prompt in enumerate(prompts) if number < len(prompt.turns)]
            for first in range(0, len(unanswered), batch_size):
                chosen = unanswered[first : first + batch_size]
                replies = [[turn.text for turn in said[place]] for place in chosen]
                asked = [prompts[place].turns[: number + 1] for place in chosen]
                contexts = [question(tokenizer, *each) for each in zip(asked, replies, strict=True)]
                torch.manual_seed(seed)
                written = _written(model, tokenizer, contexts, max_new_tokens, temperature)
                for place, context, (tokens, ended) in zip(chosen, contexts, written, strict=True):
                    text = cast(str, tokenizer.decode(tokens, skip_special_tokens=True)).strip()
                    said[place].append(Turn(text, tuple(context), tuple(tokens), ended))
    return said


def spoken(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    context: Sequence[int],
    hear: Callable[[str], None],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
) -> str:
    """Let a model go on with token ids, as `answers` does, and `hear` its words as they come; returns all of them."""
    said: list[str] = []

    class Mouth(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            said.append(text)
            hear(text)

    mouth = Mouth(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with evaluating(model), suppress(KeyboardInterrupt):  # which ends the answer alone
        _written(model, tokenizer, [[*context]], max_new_tokens, temperature, streamer=mouth)
    return "".join(said).strip()


def question(tokenizer: Any, turns: Sequence[str], said: Sequence[str]) -> list[int]:
    """Token ids that a model is given before its next answer: what a user said, and the replies to all but the last.

    Raises:
        ModelError: The chat template, where the tokenizer has one, cannot be used.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        parts = [part for turn, reply in zip(turns, said, strict=False) for part in (turn, reply)]
        return cast(list[int], tokenizer(SEPARATOR.join([*parts, turns[-1]]))["input_ids"])
    messages = [{"role": "user", "content": turns[0]}]
    for turn, reply in zip(turns[1:], said, strict=True):
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": turn}]
    found = in_chat(tokenizer, messages, add_generation_prompt=True, return_dict=True)
    return cast(list[int], found["input_ids"])


def _written(
    model: Any, tokenizer: Any, contexts: Sequence[list[int]], max_new_tokens: int, temperature: float, **options: Any
) -> list[tuple[list[int], bool]]:
    """Tokens behind each context, and whether they ended before the limit."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    longest = max(map(len, contexts))
    ids = torch.tensor([[pad or 0] * (longest - len(context)) + context for context in contexts])
    mask = torch.tensor([[0] * (longest - len(context)) + [1] * len(context) for context in contexts])
    is_drawn = temperature > 0
    found = model.generate(
        **on_device({"input_ids": ids, "attention_mask": mask}, model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        do_sample=is_drawn,
        # Sampling settings of the model's own make transformers warn when nothing is sampled.
        temperature=temperature if is_drawn else None,
        top_p=1.0 if is_drawn else None,
        top_k=0 if is_drawn else None,
        synced_gpus=is_sharded(model),  # processes that hold shards run every step together
        **options,
    )
    eos = model.generation_config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos}
    rows = []
    for row in found[:, longest:].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), None)
        rows.append((row[:end], end is not None))
    return rows
