"""What a tokenizer makes of a text alone, and of its beginning."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

ROOM = 12
"""Characters for each token of the stretch that a window is taken of; most often three times too many."""


def room(number: int, window: int) -> int:
    """The characters of text that windows are drawn from, where there are more: several times what they hold."""
    return 2 * ROOM * window * number


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token that the tokenizer begins a text with; empty where it does not."""
    ids = list(tokenizer("")["input_ids"])
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, without any that a tokenizer adds."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
