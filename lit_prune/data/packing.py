"""Whole documents to windows of tokens, several in one, of which none sees another.

A document that is longer than a window is cut, and its pieces are documents of their own. A window's tokens say where
one begins: there, `START` is added to the token, which nothing is to predict. What is left of a window is filled with
tokens that nothing predicts either, as a document more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

START = 1 << 40
"""Added to a token that begins a document; far above any vocabulary."""
OPEN = 32
"""Windows that are filled at a time: a document goes to the first that has room."""


def packed_windows(documents: Iterable[list[int]], window: int, *, bos: list[int], most: int | None = None) -> Tensor:
    """Fill windows with whole documents, LongTensor [num_windows, window], in the order in which they become full.

    Args:
        documents: The tokens of each document, without BOS; `~token` where nothing is to predict it.
        window: Number of tokens in a window.
        bos: The token that begins a document, or none.
        most: Number of windows that are wanted; all when None. Documents behind the last of them are not asked for.
    """
    full: list[list[int]] = []
    unfilled: list[list[int]] = []
    for piece in _pieces(documents, window, bos):
        row = next((row for row in unfilled if len(row) + len(piece) <= window), None)
        if row is None:
            unfilled.append(row := [])
        row.extend(piece)
        if len(row) > window - 2 or len(unfilled) > OPEN:
            fullest = max(unfilled, key=len)
            full.append(fullest)
            unfilled = [each for each in unfilled if each is not fullest]
        if len(full) == most:
            break
    rows = [*full, *sorted(unfilled, key=len, reverse=True)][:most]
    filled = [row + [~START] * (len(row) < window) + [~0] * (window - len(row) - 1) for row in rows]
    return torch.tensor([row for row in filled if max(row) >= 0], dtype=torch.long).view(-1, window)


def batch_of_packed(rows: Tensor) -> dict[str, Tensor]:
    """Tokens, whether nothing is to predict them, and where there are several documents their positions.

    Of rows [batch, window] these are `input_ids`, `hidden` and `position_ids`, all [batch, window].
    """
    hidden = rows < 0
    tokens = torch.where(hidden, ~rows, rows)
    starts, places = tokens >= START, torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    found = {"input_ids": tokens % START, "hidden": hidden}
    if not starts[:, 1:].any():
        return found
    # As transformers tells documents apart: positions begin again.
    return {**found, "position_ids": places - torch.where(starts, places, 0).cummax(dim=1).values}


def _pieces(documents: Iterable[list[int]], window: int, bos: list[int]) -> Iterator[list[int]]:
    """Documents, cut where they are too long, with their beginnings marked; those of one token predict nothing."""
    length = window - len(bos)
    for document in documents:
        for start in range(0, len(document), length):
            first, *rest = [*bos, *document[start : start + length]]
            if rest:
                yield [~((~first if first < 0 else first) | START), *rest]
