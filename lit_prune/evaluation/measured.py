"""What was measured of one model, beside another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_prune.evaluation.perplexity import TokenLoss
from lit_prune.evaluation.tasks import TaskScore
from lit_prune.files import record_of

CONFIDENT = 1.96
"""Standard errors of a difference; 95 % of chance differences are smaller."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one model: all parameters, tied ones once, losses by text, and scores by task."""

    model: str
    num_parameters: int
    perplexities: Mapping[str, TokenLoss]
    tasks: Mapping[str, TaskScore]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        """The inverse of `asdict`, from JSON; what else stands there is left alone."""
        perplexities = {text: record_of(TokenLoss, loss) for text, loss in data["perplexities"].items()}
        tasks = {name: record_of(TaskScore, score) for name, score in data["tasks"].items()}
        return cls(str(data["model"]), int(data["num_parameters"]), perplexities, tasks)


def exceeds_error(difference: float, *errors: float) -> bool:
    """Whether a difference is more than chance gives in 95 of 100 cases, by its error or those of two measured apart.

    Example:
        >>> exceeds_error(0.05, 0.02, 0.01), exceeds_error(-0.03, 0.02, 0.01)
        (True, False)
    """
    return abs(difference) > CONFIDENT * math.hypot(*errors)
