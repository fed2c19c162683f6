"""What a model says: answers to questions of one turn or several, for reading before and after pruning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.evaluation.prompts import Prompt
from lit_prune.loading.sources import in_chat
from lit_prune.measure import on_device
from lit_prune.surgery import evaluating, is_sharded

SEPARATOR = "\n\n"
"""Between turns, where there is no chat template."""


@dataclass(frozen=True)
class Turn:
    """One answer.

    Attributes:
        text: Without special tokens.
        context: Token ids that the model was given.
        tokens: Ids that it wrote, without the one that ends the answer.
        ended: Whether it ended by itself, before the limit.
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
        temperature: Of sampling; 0 is greedy.
        batch_size: Questions at a time, padded on the left.
        seed: Of the draws, the same for every batch.

    Returns:
        The answers to each question's turns.
    """
    said: list[list[Turn]] = [[] for _ in prompts]
    with evaluating(model), _drawing(model, seed):
        for number in range(max((len(each.turns) for each in prompts), default=0)):
            open_ones = [place for place, each in enumerate(prompts) if number < len(each.turns)]
            for first in range(0, len(open_ones), batch_size):
                chosen = open_ones[first : first + batch_size]
                contexts = [question(tokenizer, prompts[place].turns[: number + 1], said[place]) for place in chosen]
                torch.manual_seed(seed)
                written = _written(model, tokenizer, contexts, max_new_tokens, temperature)
                for place, context, (tokens, ended) in zip(chosen, contexts, written, strict=True):
                    text = cast(str, tokenizer.decode(tokens, skip_special_tokens=True)).strip()
                    said[place].append(Turn(text, tuple(context), tuple(tokens), ended))
    return said


@contextmanager
def _drawing(model: PreTrainedModel, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        yield


def question(tokenizer: Any, turns: Sequence[str], said: Sequence[Turn]) -> list[int]:
    """What a model is given before its next answer.

    Args:
        tokenizer: With a chat template, or none.
        turns: What a user said so far.
        said: What the model answered to all but the last.

    Returns:
        Token numbers.

    Raises:
        ModelError: The template cannot be used.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        parts = [part for turn, reply in zip(turns, said, strict=False) for part in (turn, reply.text)]
        return cast(list[int], tokenizer(SEPARATOR.join([*parts, turns[-1]]))["input_ids"])
    messages = [{"role": "user", "content": turns[0]}]
    for turn, reply in zip(turns[1:], said, strict=True):
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": turn}]
    found = in_chat(tokenizer, messages, add_generation_prompt=True, return_dict=True)
    return cast(list[int], found["input_ids"])


def _written(
    model: PreTrainedModel, tokenizer: Any, contexts: Sequence[list[int]], max_new_tokens: int, temperature: float
) -> list[tuple[list[int], bool]]:
    """Tokens behind each context, and whether they ended before the limit."""
    network: Any = model
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    longest = max(map(len, contexts))
    ids = torch.tensor([[pad or 0] * (longest - len(each)) + each for each in contexts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in contexts])
    # Sampling settings of the model's own make transformers warn when nothing is sampled.
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        options = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    # Processes that hold shards run every step together.
    options["synced_gpus"] = is_sharded(model)
    inputs = on_device({"input_ids": ids, "attention_mask": mask}, model.device)
    found: Tensor = network.generate(**inputs, max_new_tokens=max_new_tokens, pad_token_id=pad, **options)
    eos = network.generation_config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos}
    rows = []
    for row in found[:, longest:].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), None)
        rows.append((row[:end], end is not None))
    return rows
