"""Scores by a user's own task: how often the answers are wrong without a candidate, or how unlikely they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lit_prune.data import Example, example_batches, read_examples
from lit_prune.errors import LitPruneError
from lit_prune.loading.sources import load_tokenizer
from lit_prune.measure import Compute, Figure, Portion, WhatIf, inputs_fingerprint, labels_of
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.scorers.base import SCORERS, Scorer

METRICS = ("loss", "accuracy", "accuracy_norm")


@SCORERS.register("task")
@dataclass(frozen=True)
class Task(Scorer):
    """Loss or error rate without a candidate, on examples of what the model is wanted for.

    As Siddiqui et al. (arXiv 2407.16286) take the loss on MMLU in place of that on text.

    `loss`: mean loss of a token of the right completion or choice, in nats. `accuracy`: 1 - accuracy, from 0 to 1: the
    share of completions with a token that is not the likeliest one, or of examples whose likeliest choice, by the sum
    of its tokens' log-probabilities, is wrong. `accuracy_norm`: the same with that sum divided by the choice's length
    in bytes, as lm-evaluation-harness does. Higher is more important. Few examples give few error rates, so that many
    candidates tie; the loss tells them apart.

    For any candidate; one pass over the examples for each and round, less what is carried. The calibration batches are
    not used.

    Args:
        data: JSON lines with `prompt` and `completion`, or `prompt`, `choices` and `answer` (its number or text).
        metric: The figure: `loss`, `accuracy` or `accuracy_norm`.
        tokenizer: Name of the tokenizer, as of a model; None takes the name of the model.
        batch_size: Number of sequences in a batch; every choice is one.

    Raises:
        DataError: The examples cannot be read, or when called one is longer than the model's context.
        LitPruneError: The metric is unknown or does not fit the examples, or the batch size is below 1.
        ModelError: When called, there is no tokenizer.
    """

    data: str
    metric: Literal["loss", "accuracy", "accuracy_norm"] = "loss"
    tokenizer: str | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise LitPruneError(f"metric must be one of {', '.join(METRICS)}; found {self.metric!r}")
        if self.batch_size < 1:
            raise LitPruneError(f"batch_size is 1 or more; found {self.batch_size}")
        if self.metric == "accuracy_norm" and len(read_examples(self.data)[0].choices) == 1:
            raise LitPruneError(f"accuracy_norm compares choices, {self.data} has completions; use accuracy or loss")
        read_examples(self.data)

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one measurement per candidate."""
        examples, model = read_examples(self.data), what_if.model
        completions = len(examples[0].choices) == 1
        figure = ExactMatch if completions and self.metric == "accuracy" else None
        # The first word stands in journals that go on.
        name = f"{'ExactMatch' if figure else 'WhatIf'} {self.data}"
        measured = what_if.beside(name, figure, lambda: self._batches(model, examples)).losses(candidates)

        def score(figures: Tensor) -> float:
            return self._score(examples, figures.tolist(), measured.tokens.tolist())

        importance = {candidate: score(figures) for candidate, figures in measured.sequences.items()}
        return Scores(importance, zero=score(measured.base_sequences))

    def fingerprint(self, model: Any) -> str:
        """See `Scorer`: of the examples and their tokens."""
        examples = read_examples(self.data)
        written = hashlib.sha256(repr(examples).encode()).hexdigest()[:16]
        return f"{written} {inputs_fingerprint(model, self._batches(model, examples))}"

    def _batches(self, model: Any, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        name = self.tokenizer or model.config.name_or_path
        if not name:
            raise LitPruneError("the model has no name to find a tokenizer by; say tokenizer=NAME")
        return example_batches(examples, load_tokenizer(name), self.batch_size)

    def _score(self, examples: Sequence[Example], figures: list[float], tokens: list[int]) -> float:
        """The score of the examples that were measured; figures and tokens are of every choice in turn."""
        answers, num_tokens, wrong, asked, number = 0.0, 0, 0, 0, 0
        for example in examples:
            rows = slice(number, number := number + len(example.choices))
            if number > len(figures):
                break  # a search that screens measures on the first batches alone
            answers += figures[rows][example.answer]
            num_tokens += tokens[rows][example.answer]
            wrong += self._chosen(example, figures[rows]) != example.answer
            asked += 1
        if self.metric == "loss":
            return answers / num_tokens
        return (answers if len(examples[0].choices) == 1 else wrong) / asked

    def _chosen(self, example: Example, nll: Sequence[float]) -> int:
        lengths = [len(choice.encode()) if self.metric == "accuracy_norm" else 1 for choice in example.choices]
        return min(range(len(nll)), key=lambda number: nll[number] / lengths[number])


class ExactMatch(Figure):
    """Whether a sequence has a label that is not the likeliest token: 1 where it has one, else 0."""

    def __call__(self, compute: Compute, portion: Portion) -> Tensor:
        """See `Figure`; float32 [batch]."""
        logits, targets = compute(portion.logits), labels_of(portion.inputs)[:, 1:]
        return ((logits[:, :-1].argmax(dim=-1) != targets) & (targets >= 0)).any(dim=1).float()
