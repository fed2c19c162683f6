"""What was measured, by what is out of the model and by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.loading.devices import exact_dtype
from lit_prune.measure.journal import Journal, Key
from lit_prune.plan import Candidate, SublayerId

Question = tuple[Candidate | None, frozenset[SublayerId]]
"""A candidate, or nothing, and all that is out of the model without it."""


@dataclass
class Replies:
    """The part of a journal that one measure of one model writes and reads.

    Attributes:
        journal: Where replies are kept; other measures may keep theirs in it too.
        name: The measure's name; empty for the first one.
        num_corrections: How often weights were changed on purpose.
        mark: What tells weights apart that were changed otherwise; see `WeightChanges`.
    """

    journal: Journal
    name: str = ""
    num_corrections: int = 0
    mark: str = ""

    def key(self, gone: frozenset[SublayerId], index: int) -> Key:
        """Where the journal has the reply for a batch, with some sublayers out of the model as it was at first."""
        corrected = f"{self.num_corrections}c" if self.num_corrections else ""
        place = "/".join(filter(None, (self.name, corrected, self.mark, str(index))))
        return gone, place if "/" in place else index

    def missing(self, questions: Sequence[Question], index: int) -> list[tuple[Candidate | None, Key]]:
        """What nobody has measured yet on a batch, and where the reply belongs."""
        keys = [(candidate, self.key(gone, index)) for candidate, gone in questions]
        return [(candidate, key) for candidate, key in keys if key not in self.journal]

    def credit(self, questions: Sequence[Question], index: int) -> int:
        """Decoder blocks that an earlier process evaluated for these replies; see `Journal.credit`."""
        return sum(self.journal.credit(self.key(gone, index)) for _, gone in questions)

    def rows(self, questions: Sequence[Question], index: int, device: torch.device) -> Tensor:
        """The figures of a batch's sequences, [questions, batch], float64 where the device has it."""
        device = torch.device("cpu") if device.type == "meta" else device  # which holds no numbers
        rows = [self.journal[self.key(gone, index)] for _, gone in questions]
        return torch.tensor(rows, dtype=exact_dtype(device), device=device)
