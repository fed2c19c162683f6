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
    """Figures of one model.

    Attributes:
        model: Its name.
        num_parameters: All of them, tied ones once.
        perplexities: By the name of the text.
        tasks: By name.
    """

    model: str
    num_parameters: int
    perplexities: Mapping[str, TokenLoss]
    tasks: Mapping[str, TaskScore]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        """The inverse of `asdict`, from JSON; what else stands there is left alone."""
        perplexities = {text: record_of(TokenLoss, each) for text, each in data["perplexities"].items()}
        tasks = {name: record_of(TaskScore, each) for name, each in data["tasks"].items()}
        return cls(str(data["model"]), int(data["num_parameters"]), perplexities, tasks)


def exceeds_error(difference: float, *errors: float) -> bool:
    """Whether a difference is more than chance gives in 95 of 100 cases, as if the two were measured apart.

    Example:
        >>> exceeds_error(0.05, 0.02, 0.01), exceeds_error(-0.03, 0.02, 0.01)
        (True, False)
    """
    return abs(difference) > CONFIDENT * math.hypot(*errors)
