"""How much work a measure has done, and how much was found to fit into memory."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Work:
    """Passes so far; a block or a head counts once for all sequences of a batch.

    Attributes:
        blocks: Decoder blocks that were computed.
        heads: Losses that were computed.
    """

    blocks: int = 0
    heads: int = 0

    def restore(self, earlier: Work) -> None:
        """Count as before a pass that failed, or that belongs to one which is counted already."""
        self.blocks, self.heads = earlier.blocks, earlier.heads


@dataclass
class Capacity:
    """What fits into memory at a time.

    Attributes:
        forks: Candidates that share one pass through the blocks behind all of them.
        sequences: Sequences of a batch; infinite until a batch did not fit.
    """

    forks: int = 1
    sequences: float = math.inf
