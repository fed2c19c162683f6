"""A user's own task: examples in JSON lines, as batches whose labels are what the model should say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from lit_prune.data.tokens import leading_bos, tokens_of
from lit_prune.errors import DataError
from lit_prune.files import foreign_json, read_text
from lit_prune.measure import IGNORED

FORMS = '{"prompt": …, "completion": …} or {"prompt": …, "choices": […], "answer": …}'


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        prompt: Text that the model is given.
        choices: Texts that it may go on with, as they stand behind the prompt; one where there is nothing to choose.
        answer: Number of the choice that is right, from 0.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


def read_examples(path: str | Path) -> list[Example]:
    """Read the examples of a task from a file of JSON lines.

    All have `prompt` and `completion`, or all have `prompt`, `choices` and `answer`: the number of the right choice,
    from 0, or its text.

    Raises:
        DataError: The file is missing, empty or damaged; the message names the line.
    """
    try:
        lines = read_text(Path(path).expanduser()).split("\n")
    except DataError as error:
        raise DataError(f"cannot read the examples {path}: {error}") from error
    examples = [_read(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    if not examples:
        raise DataError(f"{path} holds no examples; expected lines such as {FORMS}")
    if len({len(example.choices) > 1 for example in examples}) > 1:
        raise DataError(f"{path} mixes completions and choices; expected lines of one form")
    return examples


def example_batches(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> list[dict[str, Tensor]]:
    """Make one sequence for each choice of each example: the prompt, and the choice as labels.

    Args:
        examples: Examples; all choices of one stand in the same batch.
        tokenizer: A tokenizer; where it begins a text with a BOS token, so does every sequence.
        batch_size: Number of sequences in a batch; there are more where an example has more choices.

    Returns:
        Dicts with `input_ids`, `attention_mask` and `labels`, LongTensors [sequences, longest].

    Raises:
        DataError: A prompt is empty, or nothing is left of a choice.
    """
    bos = leading_bos(tokenizer)
    batches: list[list[tuple[list[int], int]]] = [[]]
    for example in examples:
        rows = [_encode(example.prompt, choice, tokenizer, bos) for choice in example.choices]
        if batches[-1] and len(batches[-1]) + len(rows) > batch_size:
            batches.append([])
        batches[-1] += rows
    return [padded([(torch.tensor(tokens), start) for tokens, start in rows]) for rows in batches]


def _encode(prompt: str, choice: str, tokenizer: PreTrainedTokenizerBase, bos: list[int]) -> tuple[list[int], int]:
    """Tokens of prompt and choice, and how many the prompt has."""
    # A space at the end of a prompt belongs to the first word that follows.
    head, whole = ([*bos, *tokens_of(tokenizer, text)] for text in (prompt.rstrip(" "), prompt + choice))
    if not 0 < len(head) < len(whole):
        raise DataError(f"an example needs a prompt, and tokens behind it: found {prompt!r} and {choice!r}")
    return whole, len(head)


def padded(rows: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Texts, LongTensor [length] each, padded behind, as a batch whose labels begin at a place of each."""
    ids = [text for text, _ in rows]
    labels = [F.pad(text[start:], (start, 0), value=IGNORED) for text, start in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def _read(line: str, place: str) -> Example:
    row = foreign_json(line, place)
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise DataError(f"{place}: expected {FORMS}; found {line[:80]}")
    if isinstance(row.get("completion"), str):
        return Example(row["prompt"], (row["completion"],), 0)
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{place}: expected {FORMS}, with two choices at least; found {line[:80]}")
    return Example(row["prompt"], tuple(choices), _answer(row.get("answer"), choices, place))


def _answer(answer: Any, choices: list[str], place: str) -> int:
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if type(answer) is int and 0 <= answer < len(choices):
        return answer
    raise DataError(
        f"{place}: `answer` is the number of a choice, 0 to {len(choices) - 1}, or its text; found {answer!r}"
    )
