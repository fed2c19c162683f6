"""Dialogues to windows of tokens, by the chat template of the model that is to read them.

Every window begins where a dialogue begins, and holds one after the other until it is full; the last one is cut, and
what is cut off is dropped. A token that is not to be learned is kept as its complement, `~token`, so that windows stay
one tensor until they are a batch with labels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_prune.data.tokens import leading_bos, tokens_of
from lit_prune.errors import DataError
from lit_prune.files import ASSISTANT, Dialogue, Document
from lit_prune.loading.sources import in_chat

Span = tuple[int, int]


def dialogue_windows(
    dialogues: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    *,
    most: int | None = None,
    answers_only: bool = False,
) -> Tensor:
    """Fill windows with dialogues in their order, LongTensor [num_windows, window].

    Args:
        dialogues: The dialogues.
        tokenizer: A tokenizer with a chat template, but where there are prompts and completions alone.
        window: Number of tokens in a window.
        most: Number of windows that are wanted; all when None. Dialogues behind the last of them are not tokenised.
        answers_only: Whether everything but the answers is marked as not to be learned. A window in which no answer
            begins is left out.

    Raises:
        DataError: There is no chat template, or answers are wanted and it does not tell where they are.
    """
    rows: list[list[int]] = []
    row: list[int] = []
    for dialogue in dialogues:
        row += tokens_of_document(dialogue, tokenizer, answers_only=answers_only)
        if len(row) >= window:
            # Nothing predicts the first token.
            rows += [row[:window]] if max(row[1:window], default=0) >= 0 else []
            row = []
        if len(rows) == most:
            break
    return torch.tensor(rows, dtype=torch.long).view(len(rows), window)


def require_answers(windows: Tensor) -> None:
    """Refuse windows [num_windows, window] in which everything is to be learned, with a DataError."""
    if bool((windows >= 0).all()):
        raise DataError(
            "answers_only wants dialogues, such as rows of `messages`, or of `prompt` and `completion`; there are none "
            "in the texts that were given"
        )


def written(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase) -> str:
    """A dialogue as the model reads it, by its chat template; a prompt with its completion, and the end of a text."""
    if dialogue.in_template:
        return _in_template(dialogue, tokenizer, len(dialogue.messages))
    return "".join(message["content"] for message in dialogue.messages) + str(tokenizer.eos_token or "")


def answers_in(text: str, dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """Where the answers stand in a dialogue as it is `written`, the tokens that end them included.

    They stand behind what the template writes to ask for an answer. One that the template writes otherwise in the
    middle of a dialogue than at its end, such as without its reasoning, is no answer that the model would give.
    """
    if not dialogue.in_template:
        return [(len(dialogue.messages[0]["content"]), len(text))]
    spans = []
    for number, message in enumerate(dialogue.messages):
        if message["role"] == ASSISTANT and number:
            asked = _in_template(dialogue, tokenizer, number, asking=True)
            end = _num_alike(text, _in_template(dialogue, tokenizer, number + 1))
            if text[:end].startswith(asked):
                spans.append((len(asked), end))
    return spans


def tokens_of_document(dialogue: Document, tokenizer: PreTrainedTokenizerBase, *, answers_only: bool) -> list[int]:
    """The tokens of a dialogue, with what begins it, all but answers as `~token` if wanted; of a text its own alone."""
    if isinstance(dialogue, str):
        return tokens_of(tokenizer, dialogue)
    text = written(dialogue, tokenizer)
    begin = [] if dialogue.in_template else leading_bos(tokenizer)  # a template writes it itself
    if not answers_only:
        return [*begin, *tokens_of(tokenizer, text)]
    spans = answers_in(text, dialogue, tokenizer)
    if not spans and any(message["role"] == ASSISTANT for message in dialogue.messages[1:]):
        raise DataError(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} does not tell where answers begin: it "
            "writes them otherwise than behind what asks for one; leave answers_only out"
        )
    try:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except NotImplementedError as error:
        raise DataError(
            "this tokenizer does not tell where its tokens stand in a text, as fast tokenizers do; leave answers_only "
            "out"
        ) from error
    marked = [
        token if any(first <= start < last for first, last in spans) else ~token
        for token, (start, _) in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]
    return [*(~token for token in begin), *marked]


def _in_template(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, number: int, *, asking: bool = False) -> str:
    """The first messages of a dialogue in the template, perhaps with what asks for an answer behind them."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(
            f"messages want a chat template, and {tokenizer.name_or_path or 'this tokenizer'} has none; give texts, or "
            "a prompt and a completion each"
        )
    tools = None if dialogue.tools is None else list(dialogue.tools)
    found: str = in_chat(
        tokenizer, list(dialogue.messages[:number]), tokenize=False, tools=tools, add_generation_prompt=asking
    )
    return found


def _num_alike(one: str, other: str) -> int:
    """The number of characters at the beginning that two texts share."""
    return next(
        (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
