"""What a model is for, by the name of its class: a head that gives no next tokens cannot be measured as if it did."""

from __future__ import annotations

import re
from typing import Any

from lit_prune.errors import AnatomyError

CLASSIFIER = "ForSequenceClassification"
OTHER_HEADS = re.compile(
    r"For(Sequence|Token|Image|Audio)Classification$|ForQuestionAnswering$|ForMultipleChoice$|ForMaskedLM$"
    r"|ForRewardModeling$|RewardModel$|(?<!LMHead)(?<!DoubleHeads)Model$"
)


def gives_no_tokens(architecture: str) -> bool:
    """Whether a class of this name is a classifier, a reward model, or a model without a head, as embedders are.

    Example:
        >>> gives_no_tokens("XForSequenceClassification"), gives_no_tokens("XModel"), gives_no_tokens("XLMHeadModel")
        (True, True, False)
    """
    return OTHER_HEADS.search(architecture) is not None


def classifies(model: Any) -> bool:
    """Whether a model is a sequence classifier of transformers, as reward models are."""
    return any(
        base.__module__.startswith("transformers.models.") and base.__name__.endswith(CLASSIFIER)
        for base in type(model).__mro__
    )


def require_tokens_out(model: Any) -> None:
    """Refuse with an AnatomyError transformers' own classes that are for something else; others show it as they run."""
    kind = type(model)
    if kind.__module__.startswith("transformers.") and gives_no_tokens(kind.__name__):
        raise AnatomyError(f"{kind.__name__} {NO_TOKENS}")


NO_TOKENS = (
    "is no causal language model: it gives no next tokens whose loss could be measured, and pruned as one it would be "
    "of no use. Prune the language model that it was made from, and train that for the task again; or, of a sequence "
    "classifier or reward model, call lit_prune.prune(model, batches) with its labels in them"
)
