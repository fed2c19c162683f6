"""The loss of a model, from its logits: of next tokens, or of a sequence classifier its own, by its labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.anatomy import classifies, require_tokens_out
from lit_prune.errors import DataError, MeasureError
from lit_prune.loading.devices import exact_dtype
from lit_prune.measure.apart import require_apart
from lit_prune.measure.batches import IGNORED, input_ids_of, labels_of, model_inputs, predicts, read_batches
from lit_prune.measure.losses import sequence_losses


def logits_of(model: nn.Module, batch: Mapping[str, Any], positions: Tensor | None = None) -> Tensor:
    """Logits of the next tokens, [batch, positions, vocab].

    Args:
        model: A causal language model.
        batch: A batch with `input_ids` [batch, seq], on the model's device.
        positions: The positions that are wanted, int64 [positions]; all when None. The model's `forward` must take
            `logits_to_keep`.

    Raises:
        MeasureError: The model gives something else.
    """
    options = {} if positions is None else {"logits_to_keep": positions}
    logits = getattr(model(**model_inputs(model, batch), use_cache=False, **options), "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        found = f"logits of the shape {list(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        raise MeasureError(f"{type(model).__name__} gives {found}; expected those of next tokens, [batch, seq, vocab]")
    return logits


@dataclass(frozen=True)
class TokenLosses:
    """The loss of a causal language model's next tokens."""

    by_position: ClassVar[bool] = True
    """Whether positions have logits and losses of their own."""
    model: Any

    def read(self, batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """All that the model takes of some batches, and their labels; what cannot be used is refused."""
        require_tokens_out(self.model)
        batches = list(batches)
        read = read_batches(self.model, batches)
        require_apart(self.model, batches)
        return read

    def num_targets(self, batch: Mapping[str, Any]) -> Tensor:
        """How many tokens of each sequence are predicted, int64 [batch]."""
        return predicts(labels_of(batch)).sum(dim=1)

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits of the model as it is set up now, [batch, seq, vocab]."""
        return logits_of(self.model, batch)

    def of_logits(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Loss sums of the sequences in nats, float64 [batch] where the device has it."""
        return sequence_losses(logits, labels_of(batch))[0]


class ClassLosses(TokenLosses):
    """The loss that transformers' `…ForSequenceClassification` trains by, a sequence where others have tokens.

    For classes it is cross entropy, for a number squared error, and for several numbers binary cross entropy, or
    squared error where `config.problem_type` says `regression`.
    """

    by_position: ClassVar[bool] = False

    def read(self, batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See `TokenLosses`."""
        return [{**model_inputs(self.model, batch), "labels": self._labels(batch)} for batch in batches]

    def num_targets(self, batch: Mapping[str, Any]) -> Tensor:
        """See `TokenLosses`: 1, or 0 where the class is masked."""
        labels: Tensor = batch["labels"]
        return (labels.reshape(len(labels), -1) != IGNORED).all(dim=1).long()

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits of the classes, or the numbers, [batch, num_labels]."""
        logits: Tensor = self.model(**model_inputs(self.model, batch), use_cache=False).logits
        return logits

    def of_logits(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """See `TokenLosses`."""
        labels, logits = batch["labels"], logits.float()
        problem = self._problem(labels)
        if problem == "single_label_classification":
            losses = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="none")
        else:
            loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
            losses = loss(logits, labels.reshape(logits.shape).to(logits), reduction="none").mean(dim=1)
        return losses.to(exact_dtype(losses.device))

    def _problem(self, labels: Tensor) -> str:
        """As transformers finds it out where the config does not say."""
        if self.model.config.num_labels == 1:
            guess = "regression"
        else:
            guess = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        return self.model.config.problem_type or guess

    def _labels(self, batch: Mapping[str, Any]) -> Tensor:
        labels, num, number = batch.get("labels"), len(input_ids_of(batch)), self.model.config.num_labels
        if isinstance(labels, Tensor):
            one = self._problem(labels) == "single_label_classification"
            if tuple(labels.shape) in ([(num,)] if one else [(num, number), (num,) if number == 1 else ()]):
                return labels
        found = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise DataError(
            f"a {type(self.model).__name__} is measured by its own loss, which wants `labels` of a batch's sequences: "
            f"classes [{num}], or numbers [{num}, {number}]; found {found}"
        )


def objective_of(model: nn.Module) -> TokenLosses:
    """The loss that fits a model."""
    return ClassLosses(model) if classifies(model) else TokenLosses(model)
