"""What was removed, in which order, and why: steps and the plan, as data without torch.

A plan is JSON that a person can read and that applies to any copy of the model it was made for. When it is read, what
it says is checked before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_prune.errors import PlanError
from lit_prune.files import read_json, record_of, require_kinds, to_json, write_json
from lit_prune.plan.candidates import MAX_BLOCKS, SublayerId
from lit_prune.plan.steps import ModelFacts, PruneStep
from lit_prune.plan.unseen import UNSEEN_KINDS

SCHEMA_VERSION = 1
PLAN_FILE = "prune_plan.json"
SETTINGS = ("calibration", "scorer", "search", "compensation", "budget", "unseen", "healing", "versions")
SHOWN: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], Mapping[str, Any]], ...] = (
    ("compensation", bool, {"name": str}),
    ("healing", bool, {"tokens": int, "ppl_before": float, "ppl_after": float}),
    ("healing", lambda found: "manners" in found, {"manners": Mapping[str, Mapping[str, float | None]]}),
    ("budget", lambda found: found.get("rise") is not None, {"rise": float, "max_rise": float}),
    (
        "budget",
        lambda found: found.get("of", "params") != "params" and "reached" in found,
        {"unit": str, "total": float, "reached": float, "amount": float | None},
    ),
)
"""Which settings reports and cards show, when they show them, and what these have to hold."""
OUTCOME = ("reached", "rise", "stopped_by", "num_removals")
"""What a budget says of what the removals came to."""
MOST_FACTOR = 1e6
"""No sublayer makes the stream so many times longer or shorter; the weights behind it would overflow, or vanish."""


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
        unseen: What the removals did to the model on texts that decided nothing, by the name of the text: numbers of
            windows and predicted tokens, the mean token losses (nats) before and after, and the standard error of their
            difference, from how windows differ.
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
    unseen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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
    def num_ties(self) -> int | None:
        """Rounds in which others were within one standard error of the lowest score; None where none is known."""
        if not any(step.margins for step in self.steps):
            return None
        return sum(bool(step.ties) for step in self.steps)

    @property
    def asked_compensation(self) -> dict[str, Any]:
        """The compensation without what was found by it: its name, and the ridges of one that was told them."""
        return {name: self.compensation[name] for name in ("name", "ridges") if name in self.compensation}

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
            _require_sound(plan)
        except (KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"the plan is damaged: {error!r}; make it again, or take it from a backup") from error
        return replace(plan, budget=_outcome_of_steps(plan))

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
        if path.is_dir() and not (path := path / PLAN_FILE).exists():
            raise PlanError(
                f"there is no {PLAN_FILE} in {path.parent}: lit-prune has not written this folder. Where another tool "
                "has trained a pruned model, copy the file from the folder that was trained"
            )
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


def _require_sound(plan: PrunePlan) -> None:
    """Raise a PlanError where no model could have lost what the plan says, a TypeError where a setting is wrong."""
    for name, is_shown, kinds in SHOWN:
        if is_shown(data := getattr(plan, name)):
            require_kinds(name, data, kinds)
    for name, row in plan.unseen.items():
        require_kinds(f"unseen {name}", row, UNSEEN_KINDS)
    if plan.budget.get("total") == 0:
        raise TypeError("nothing can be a share of a total of 0")
    _require_possible(plan)
    for step in plan.steps:
        for name, fact in step.compensation.items():
            if SublayerId.parse(name) not in step.removed.sublayers:
                raise PlanError(f"the plan is damaged: it makes up for {name}, where {step.removed.name} goes")
            _require_correction(name, fact, scaled=plan.compensation.get("name") == "scale")


def _require_possible(plan: PrunePlan) -> None:
    model = plan.model
    if not 0 < model.num_blocks <= MAX_BLOCKS:
        raise PlanError(f"the plan is damaged: a model of {model.num_blocks:,} blocks; expected 1 to {MAX_BLOCKS:,}")
    gone = [step.num_parameters for step in plan.steps]
    if model.num_parameters <= 0 or any(number < 0 for number in gone) or sum(gone) > model.num_parameters:
        raise PlanError(f"the plan is damaged: {sum(gone):,} parameters go of {model.num_parameters:,}")
    seen: set[SublayerId] = set()
    for sublayer in plan.removed:
        if sublayer in seen:
            raise PlanError(f"the plan is damaged: it removes {sublayer} twice")
        if sublayer.block >= model.num_blocks:
            raise PlanError(f"the plan is damaged: it removes {sublayer} from a model of {model.num_blocks} blocks")
        seen.add(sublayer)


def _require_correction(name: str, fact: object, *, scaled: bool) -> None:
    """Factors are folded again where the plan is applied, so that they must be such that a stream can have."""
    if not isinstance(fact, Mapping) or (scaled and not _is_factor(fact.get("factor"))):
        raise PlanError(
            f"the plan is damaged: what makes up for {name} is {repr(fact)[:80]}; expected a mapping"
            + (f" with a `factor` of 1 / {MOST_FACTOR:,.0f} to {MOST_FACTOR:,.0f}" if scaled else "")
        )


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 / MOST_FACTOR <= value <= MOST_FACTOR


def _outcome_of_steps(plan: PrunePlan) -> Mapping[str, Any]:
    """The budget of a plan, its outcome that of the steps: somebody may have taken some out by hand."""
    budget, num_steps = dict(plan.budget), len(plan.steps)
    in_parameters = budget.get("of", "params") == "params"
    reached = plan.num_removed_parameters
    whole = reached == budget.get("reached", reached) or not in_parameters
    if whole and budget.get("num_removals", num_steps) == num_steps:
        return budget
    found = {**{name: value for name, value in budget.items() if name not in OUTCOME}, "num_removals": num_steps}
    if not in_parameters:
        warnings.warn(
            f"the plan has {num_steps} removals, its budget tells of another number: what they came to is unknown",
            stacklevel=2,
        )
        return found
    found["reached"] = reached
    if budget.get("rise") is not None and plan.nll_rise is not None:
        found["rise"] = math.expm1(min(plan.nll_rise, 700))
    return found
