"""One removal with its evidence, and the facts of the model that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_prune.errors import PlanError
from lit_prune.files import record_of
from lit_prune.plan.candidates import Candidate, Scores


@dataclass(frozen=True)
class PruneStep:
    """One removal with its evidence.

    Attributes:
        removed: What was taken out.
        num_parameters: Number of parameters that went with it.
        score: Its importance by the plan's scorer, None where the search does not score.
        nll_before: Mean token loss (nats) of the model before, on the calibration tokens.
        nll_after: Mean token loss (nats) without what was removed, before any training.
        cost: Work spent on finding it, in dense forward passes over the calibration tokens.
        epoch: Training epoch at whose start it went, None outside training.
        scores: Importance of every candidate of the round, by name.
        measured: Share of the tokens on which a candidate was measured in the round, by name; empty for a search that
            measures all candidates on all tokens.
        screened: Importance on the share of the tokens that the search screened on in the round, by name.
        disturbed: Whether a search that spares itself work found a score outside of what it had expected.
        errors: Standard error of the importance, by name, where the scorer draws samples.
        margins: Standard error of how far the importance is above the lowest, by name, where the scorer knows it.
        chosen: Share of the sets in which a candidate is among those that go, by name, where the search makes several.
        compensation: Facts about what was folded into weights that stay, by the sublayer's name.
    """

    removed: Candidate
    num_parameters: int
    score: float | None = None
    nll_before: float | None = None
    nll_after: float | None = None
    cost: float = 0.0
    epoch: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    screened: Mapping[str, float] = field(default_factory=dict)
    disturbed: bool = False
    errors: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, float] = field(default_factory=dict)
    compensation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ties(self) -> list[str]:
        """Candidates whose importance was within one standard error of the lowest: chance chose among them and that."""
        lowest = min((self.scores[name] for name in self.margins), default=0.0)
        return [name for name, error in self.margins.items() if 0 < self.scores[name] - lowest <= error]

    @classmethod
    def recorded(cls, removed: Candidate, scores: Scores, *, num_parameters: int = 0, **facts: Any) -> PruneStep:
        """A removal with what its round said; `facts` are other attributes."""

        def by_name(values: Mapping[Candidate, float]) -> dict[str, float]:
            return {candidate.name: float(value) for candidate, value in values.items()}

        return cls(
            removed,
            num_parameters,
            score=float(scores.importance[removed]),
            nll_before=scores.base_nll,
            nll_after=scores.nll.get(removed),
            scores=by_name(scores.importance),
            measured=by_name(scores.measured),
            screened=by_name(scores.screened),
            disturbed=scores.disturbed,
            errors=by_name(scores.errors),
            margins=by_name(scores.margins),
            chosen=by_name(scores.chosen),
            **facts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and for checkpoints."""
        plain = {name: dict(value) for name, value in vars(self).items() if isinstance(value, Mapping)}
        return {**vars(self), **plain, "removed": self.removed.name}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruneStep:
        """The inverse of `to_dict`."""
        return record_of(cls, {**data, "removed": Candidate.parse(data["removed"])})


@dataclass(frozen=True)
class ModelFacts:
    """The model of a plan.

    Attributes:
        model_type: transformers' `config.model_type`.
        num_blocks: Decoder blocks of the original model.
        hidden_size: Width of the residual stream.
        num_parameters: All parameters of the model before this plan, embeddings and head included, tied ones once.
        name: Name or path by which it was loaded, for people; nothing goes by it.
        revision: Commit of the Hub that it was loaded from, for people; None where there is none.
    """

    model_type: str
    num_blocks: int
    hidden_size: int
    num_parameters: int
    name: str = ""
    revision: str | None = None

    def require_same(self, other: ModelFacts) -> None:
        """Check the facts against those of a model, whose vocabulary may have another size: a plan is about blocks.

        Raises:
            PlanError: They differ; the message names each difference.
        """
        differing = [
            f"{name} {own} in the plan, {found} in the model"
            for name in ("model_type", "num_blocks", "hidden_size")
            if (own := getattr(self, name)) != (found := getattr(other, name))
        ]
        if differing:
            raise PlanError(
                f"this plan was made for {self.name or 'another model'}: {'; '.join(differing)}. "
                "Apply it to an unpruned copy of the model it was made for."
            )
