"""Text to windows of tokens.

Protocol: documents are joined by two newlines, tokenised once, and cut in windows that do not overlap; what is left
over is dropped. A text of more than `LONG` characters is not tokenised as one, which takes some 250 bytes a character:
where all of its windows are wanted, it is tokenised piece by piece, and where some are, each of these begins a stretch
of its own, drawn from all of the text, and nothing else is tokenised. Dialogues: see `lit_prune.data.chat`; documents
that stay whole: `lit_prune.data.packing`.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_prune.data.chat import dialogue_windows, tokens_of_document
from lit_prune.data.packing import packed_windows
from lit_prune.data.texts import read_texts
from lit_prune.data.tokens import ROOM, leading_bos, room, tokens_of
from lit_prune.errors import DataError
from lit_prune.files import Dialogue, Document

JOINT = "\n\n"
LONG = 4_000_000
"""Characters up to which a text is tokenised as one."""
PIECE = 500_000
"""Characters of a longer text that are tokenised at a time."""


def token_windows(
    texts: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    stride: int | None = None,
    *,
    answers_only: bool = False,
    by_document: bool = False,
) -> Tensor:
    """Cut documents into windows of tokens, LongTensor [num_windows, window].

    Args:
        texts: Documents; texts are joined by two newlines and tokenised once, or in pieces where they are long,
            dialogues fill windows as `dialogue_windows` says.
        tokenizer: A tokenizer; where it begins a text with a BOS token, every window does so, as some models need.
        window: Number of tokens in a window, BOS included.
        stride: Number of tokens from the beginning of one window to that of the next; without overlap when None.
        answers_only: Whether all but the answers in dialogues is marked as not to be learned; of texts nothing is.
        by_document: Whether documents stay whole, several in a window where they fit, and do not see each other; see
            `lit_prune.data.packing`.

    Raises:
        DataError: The text is shorter than one window, a window cannot hold two tokens, or a stride skips some or is
            given for dialogues, or as for `dialogue_windows`.
    """
    dialogues, texts = _apart(texts)
    if dialogues or by_document:
        return _of_documents(
            dialogues or texts, tokenizer, window, stride, most=None, answers_only=answers_only, by_document=by_document
        )
    cut, joined = _Cut(tokenizer, window, stride), _Joined(texts)
    pieces = joined.pieces() if joined.length > LONG else [JOINT.join(texts)]
    tokens = torch.cat([torch.tensor(tokens_of(tokenizer, piece), dtype=torch.int32) for piece in pieces])
    num_windows = max(0, (len(tokens) - cut.length) // cut.step + 1)
    if not num_windows:
        raise DataError(
            f"the text has {len(tokens)} tokens, shorter than one window of {window}; give more, or cut shorter"
        )
    return cut.windows(tokens.unfold(0, cut.length, cut.step))


def draw_windows(
    texts: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    most: int,
    seed: int,
    stride: int | None = None,
    in_order: bool = False,
    answers_only: bool = False,
    by_document: bool = False,
) -> Tensor:
    """Draw windows of documents by a seed, LongTensor [num_windows, window].

    Args:
        texts: Documents.
        tokenizer: A tokenizer as for `token_windows`.
        window: Number of tokens in a window.
        most: Number of windows that are wanted; there are fewer where the text has no more.
        seed: Decides which windows are drawn, and their order.
        stride: A stride as for `token_windows`. Windows drawn from a long text never overlap.
        in_order: Whether windows come in the order of the text; of documents the first ones are taken then.
        answers_only: As for `token_windows`.
        by_document: As for `token_windows`.

    Raises:
        DataError: Nothing is wanted, or as for `token_windows`.
    """
    if most < 1:
        raise DataError(f"1 window or more is drawn; found {most}")
    dialogues, texts = _apart(texts)
    if dialogues or by_document:
        drawn: Sequence[Document] = dialogues or texts
        if not in_order:
            order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed)).tolist()
            drawn = [drawn[place] for place in order]
        return _of_documents(
            drawn, tokenizer, window, stride, most=most, answers_only=answers_only, by_document=by_document
        )
    joined, size = _Joined(texts), ROOM * window
    if joined.length > LONG and joined.length // size >= 2 * most:
        cut = _Cut(tokenizer, window)
        found = _beginnings(joined, cut, size, most, seed)
        if len(found) == most:
            places = sorted(found) if in_order else found
            return cut.windows(torch.tensor([found[place] for place in places], dtype=torch.int32))
    # Short, or of longer tokens than there is room for: all of it is looked at.
    windows = token_windows(texts, tokenizer, window, stride)
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:most]
    return windows[chosen.sort().values if in_order else chosen]


def drawn_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    wanted: int,
    seed: int,
    most: int | None = None,
    stride: int | None = None,
    answers_only: bool = False,
    by_document: bool = False,
    **reading: Any,
) -> Tensor:
    """Draw windows of a text by its source: up to `most` of them (`wanted` when None), and no fewer than `wanted`.

    Other arguments, and what is returned, are as for `read_texts` and `draw_windows`.

    Raises:
        DataError: There are fewer windows than are wanted, or as for `read_texts` and `draw_windows`.
    """
    most = wanted if most is None else most
    texts = read_texts(source, **{"enough": room(most, window), "seed": seed, **reading})
    manner: dict[str, Any] = {"stride": stride, "answers_only": answers_only, "by_document": by_document}
    rows = draw_windows(texts, tokenizer, window=window, most=most, seed=seed, **manner)
    if len(rows) < wanted:
        raise DataError(f"{source} has {len(rows)} windows of {window} tokens; {wanted} are asked for")
    return rows


def interleaved(kinds: Sequence[Tensor]) -> Tensor:
    """Windows [num_windows, window] of several kinds of text in turn, as long as each has any.

    Any stretch of them then holds all kinds alike, as does every batch of so many.

    Example:
        >>> interleaved([torch.tensor([[1], [2]]), torch.tensor([[5], [6], [7]])]).flatten().tolist()
        [1, 5, 2, 6, 7]
    """
    turns = max(map(len, kinds))
    return torch.stack([rows[turn] for turn in range(turns) for rows in kinds if turn < len(rows)])


def _apart(documents: Sequence[Document]) -> tuple[list[Dialogue], list[str]]:
    """Dialogues, or texts: one of the two is empty."""
    dialogues = [document for document in documents if isinstance(document, Dialogue)]
    texts = [document for document in documents if isinstance(document, str)]
    if dialogues and texts:
        raise DataError(
            f"{len(dialogues)} dialogues and {len(texts)} texts stand in one source, which are cut in different ways; "
            "put them into two files, and give both"
        )
    return dialogues, texts


def _of_documents(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    stride: int | None,
    *,
    most: int | None,
    answers_only: bool,
    by_document: bool,
) -> Tensor:
    cut = _Cut(tokenizer, window)
    if stride is not None:
        raise DataError("windows of documents begin where one begins; leave the stride out")
    if by_document:
        tokens = (tokens_of_document(document, tokenizer, answers_only=answers_only) for document in documents)
        bos = [] if isinstance(documents[0], Dialogue) else cut.bos  # a dialogue's own tokens have it
        found = packed_windows(tokens, window, bos=bos, most=most)
    else:
        found = dialogue_windows(documents, tokenizer, window, most=most, answers_only=answers_only)
    if not len(found):
        answers = " with an answer in it" if answers_only else ""
        raise DataError(
            f"{len(documents)} documents fill no window of {window} tokens{answers}; give more, or cut shorter"
        )
    return found


class _Cut:
    """How a tokenizer's tokens are cut: the BOS token, the tokens of text in a window, and those to the next one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, window: int, stride: int | None = None) -> None:
        if window < 2:
            raise DataError(f"a window of {window} tokens predicts nothing; expected 2 at least")
        self.tokenizer = tokenizer
        self.bos = leading_bos(tokenizer)
        self.length = window - len(self.bos)
        self.step = self.length if stride is None else stride
        if not 1 <= self.step <= self.length:
            raise DataError(f"a stride must be from 1 to the {self.length} tokens of a window; found {self.step}")

    def windows(self, body: Tensor) -> Tensor:
        """Tokens of text [num_windows, length] behind the BOS token."""
        return torch.cat([torch.tensor(self.bos, dtype=torch.long).expand(len(body), -1), body.long()], dim=1)


class _Joined:
    """Documents as one text with joints between them, which is never made."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.starts = list(accumulate((len(text) + len(JOINT) for text in texts), initial=0))
        self.length = max(0, self.starts.pop() - len(JOINT))

    def stretch(self, start: int, size: int) -> str:
        """The text from a place on, of so many characters."""
        parts: list[str] = []
        for number in range(bisect_right(self.starts, start) - 1, bisect_left(self.starts, start + size)):
            offset = start - self.starts[number]
            for text in (self.texts[number], JOINT if number + 1 < len(self.texts) else ""):
                parts.append(text[max(0, offset) : max(0, offset + size)])
                offset -= len(text)
        return "".join(parts)

    def pieces(self) -> Iterator[str]:
        """All of the text, cut behind lines, or where words begin."""
        start = 0
        while start < self.length:
            text = self.stretch(start, PIECE)
            if start + len(text) < self.length:
                text = text[: text.rfind("\n") + 1] or text[: max(0, text.rfind(" "))] or text
            yield text
            start += len(text)


def _beginnings(joined: _Joined, cut: _Cut, size: int, most: int, seed: int) -> dict[int, list[int]]:
    """The first window of some stretches of the text, drawn; fewer than wanted where too many are too short."""
    found: dict[int, list[int]] = {}
    order = torch.randperm(joined.length // size, generator=torch.Generator().manual_seed(seed)).tolist()
    for stretch in order[: 2 * most]:
        if len(found) == most:
            break
        # What is left of a word at the beginning is dropped.
        text = re.sub(r"\A\S{0,99}(?=\s)", "", joined.stretch(stretch * size, size))
        tokens = tokens_of(cut.tokenizer, text)
        if len(tokens) >= cut.length:
            found[stretch] = tokens[: cut.length]
    return found
