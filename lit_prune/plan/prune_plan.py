"""What was removed, in which order, and why: steps and the plan, as data without torch.

A plan is JSON that a person can read and that applies to any copy of the model it was made for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_prune.errors import PlanError
from lit_prune.files import read_json, record_of, to_json, write_json
from lit_prune.plan.candidates import Candidate, Scores, SublayerId
from lit_prune.plan.soundness import outcome_of_steps, require_sound

SCHEMA_VERSION = 1
PLAN_FILE = "prune_plan.json"
SETTINGS = ("calibration", "scorer", "search", "compensation", "budget", "healing", "versions")


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
        scores: Importance of every candidate of the round, by name; with `measured`, `screened`, `disturbed` and
            `errors` as in the round's `Scores`.
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
    compensation: Mapping[str, Any] = field(default_factory=dict)

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
    """The model of a plan; `name` and `revision` are for people.

    Attributes:
        model_type: transformers' `config.model_type`.
        num_blocks: Decoder blocks of the original model.
        hidden_size: Width of the residual stream.
        num_parameters: All parameters of the model before this plan, embeddings and head included, tied ones once.
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


@dataclass(frozen=True)
class PrunePlan:
    """An ordered list of removals, and what produced it.

    Attributes:
        model: Facts about the model that it was made for.
        steps: The removals, first to last.
        calibration: Source, number of sequences and tokens, and fingerprint of the tokens that scored.
        scorer: Name and options of the scorer.
        search: Name and options of the search.
        compensation: Name and options of the compensation; empty where weights that stay were left as they are.
        budget: What was asked for, and what it came to.
        healing: Settings and outcome of the training afterwards; empty where there was none.
        versions: Versions of the packages that made it, by their names.
    """

    model: ModelFacts
    steps: tuple[PruneStep, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    scorer: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    compensation: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    healing: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def removed(self) -> tuple[SublayerId, ...]:
        """Every sublayer taken out, in order of removal."""
        return tuple(sublayer for step in self.steps for sublayer in step.removed.sublayers)

    @property
    def num_removed_parameters(self) -> int:
        """Parameters taken out by all steps."""
        return sum(step.num_parameters for step in self.steps)

    @property
    def cost(self) -> float:
        """Work of the whole search, in dense forward passes over the calibration tokens."""
        return math.fsum(step.cost for step in self.steps)

    @property
    def num_disturbed(self) -> int | None:
        """Rounds in which a search that spares itself work was surprised; None where every round measured all."""
        if not any(step.measured for step in self.steps):
            return None
        return sum(step.disturbed for step in self.steps)

    @property
    def nll_rise(self) -> float | None:
        """How much the mean token loss (nats) rose from before the first removal to after the last, where known."""
        first, last = (self.steps[0].nll_before, self.steps[-1].nll_after) if self.steps else (None, None)
        return None if first is None or last is None else last - first

    def with_step(self, step: PruneStep) -> PrunePlan:
        """The plan with one more removal."""
        return replace(self, steps=(*self.steps, step))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, schema version first."""
        data = {name: dict(getattr(self, name)) for name in SETTINGS}
        steps = [step.to_dict() for step in self.steps]
        return {"schema_version": SCHEMA_VERSION, "model": asdict(self.model), **data, "steps": steps}

    @classmethod
    def from_dict(cls, data: Any) -> PrunePlan:
        """Read the form that `to_dict` writes; what a budget says was reached is that of the steps.

        Raises:
            PlanError: The schema is newer than this package's, or the data is damaged.
        """
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise PlanError(f"the plan has schema {version}, this lit-prune reads up to {SCHEMA_VERSION}; upgrade it")
        if version != SCHEMA_VERSION:
            raise PlanError(f"this is not a prune plan: expected schema_version {SCHEMA_VERSION}, found {version!r}")
        try:
            rest = {name: value for name, value in data.items() if name not in ("schema_version", "model", "steps")}
            steps = tuple(PruneStep.from_dict(step) for step in data["steps"])
            plan = record_of(cls, {**rest, "model": record_of(ModelFacts, data["model"]), "steps": steps})
            require_sound(plan)
        except (KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"the plan is damaged: {error!r}; make it again, or take it from a backup") from error
        return replace(plan, budget=outcome_of_steps(plan))

    def save(self, path: str | Path) -> Path:
        """Write JSON beside the target, then rename, so that the file is whole or absent; with a checksum.

        Raises:
            PlanError: It cannot be written.
        """
        data = to_json(self.to_dict())
        try:
            return write_json(path, {**data, "sha256": _sum(data)})
        except OSError as error:
            raise PlanError(f"cannot write the plan {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path) -> PrunePlan:
        """Read a plan from its file, or from a folder that holds `prune_plan.json`.

        Raises:
            PlanError: There is no such file, or it is no readable plan.
        """
        path = Path(path)
        path = path / PLAN_FILE if path.is_dir() else path
        try:
            data = read_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise PlanError(f"the plan {path} is damaged: {error}; make it again, or take it from a backup") from error
        if isinstance(data, dict) and "sha256" in data and data.pop("sha256") != _sum(to_json(data)):
            raise PlanError(
                f"the plan {path} is not what was written: make it again, or take it from a backup. If it was changed "
                "on purpose, delete the line with its sha256"
            )
        return cls.from_dict(data)


def package_versions() -> dict[str, str]:
    """Versions of the packages that make a plan, where they are installed."""
    found = {}
    for name in ("lit-prune", "torch", "transformers", "lightning", "peft"):
        with suppress(PackageNotFoundError):  # lit-prune itself may run from its sources
            found[name] = version(name)
    return found


def _sum(data: Mapping[str, Any]) -> str:
    """A checksum of what a plan's JSON says, however it is laid out."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
