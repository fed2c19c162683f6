"""What lit-prune's commands leave in a folder, read for the page. Knows which files there are, nothing of HTML."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_prune.errors import DataError, LitPruneError
from lit_prune.evaluation import Measured, Result, Signs, read_results
from lit_prune.files import checked, read_json
from lit_prune.plan import PLAN_FILE, PrunePlan
from lit_prune.report.analysis import PICTURES
from lit_prune.report.record import SUMMARY_FILE, Summary, read_summary

EVALUATION_FILE, RESULTS_FILE, ANALYSIS_FILE = "evaluation.json", "results.jsonl", "analysis.json"
EVENTS = "events.out.tfevents.*"
SETTINGS_FILES = ("config.yaml", "hparams.yaml")
CURVES = ("val_ppl", "prune/parameters_left")
"""Scalars that the page draws."""
LOOKED_FOR = {
    PLAN_FILE: "prune, apply, heal",
    f"{SUMMARY_FILE} or {EVENTS}": "fit",
    EVALUATION_FILE: "evaluate",
    RESULTS_FILE: "compare",
    ANALYSIS_FILE: "analyse",
}

Turns = tuple[str, ...]


@dataclass(frozen=True)
class Dialogue:
    """The same prompt to several models.

    Attributes:
        prompt: The user's turns.
        answers: By the name of the model, one answer a turn.
    """

    prompt: Turns
    answers: Mapping[str, Turns]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` left.

    Attributes:
        name: The folder, as it was given.
        settings: Of the measurement.
        rows: One a model, in the order of measurement.
        against: Name of the reference, None where there was none or it is not recorded.
        answers: To the same prompts. In the file a list `answers` of `{"prompt": [turn, ...], "answers": {model: [turn,
            ...]}}`; a turn is a text, or a chat's mapping with its text as `content`.
        signs: Of damage in the answers, by the name of the model.
    """

    name: str
    settings: Mapping[str, Any]
    rows: tuple[Measured, ...]
    against: str | None = None
    answers: tuple[Dialogue, ...] = ()
    signs: Mapping[str, Signs] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonRun:
    """What `compare` left: where it is, settings, rows."""

    name: str
    settings: Mapping[str, Any]
    rows: tuple[Result, ...]


@dataclass(frozen=True)
class AnalysisRun:
    """What `analyse` left: where it is, settings, names of the models, pictures by their titles as PNG."""

    name: str
    settings: Mapping[str, Any]
    models: tuple[str, ...]
    pictures: Mapping[str, bytes]


@dataclass(frozen=True)
class ModelRun:
    """What `prune`, `apply`, `heal` or `fit` left.

    Attributes:
        name: The folder, as it was given.
        model: Folder of the pruned model, None where none was saved.
        plan: What was removed; None of a training whose callback left neither plan nor summary.
        summary: Figures before and after, of a training.
        curves: Scalars of a training by name: optimizer step and value.
        settings: Texts of its settings by the name of the file.
        model_name: The folder of the model, in the words in which the run's was given.
    """

    name: str
    model: Path | None
    plan: PrunePlan | None
    summary: Summary | None = None
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    model_name: str = ""


@dataclass(frozen=True)
class Sources:
    """Everything that a page is made of, in the order in which it was given."""

    models: tuple[ModelRun, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    comparisons: tuple[ComparisonRun, ...] = ()
    analyses: tuple[AnalysisRun, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of all folders, each once."""
        found = [
            [each.name for each in one] for one in (self.models, self.comparisons, self.evaluations, self.analyses)
        ]
        return list(dict.fromkeys(name for names in found for name in names))


def read_sources(folders: Iterable[str | Path]) -> Sources:
    """Read folders that lit-prune has written, each of which may be several things at once.

    Raises:
        LitPruneError: A folder is missing, or holds nothing of lit-prune.
        DataError: A file in it is damaged.
        PlanError: Its plan is.
    """
    models: list[ModelRun] = []
    evaluations: list[Evaluation] = []
    comparisons: list[ComparisonRun] = []
    analyses: list[AnalysisRun] = []
    for name in dict.fromkeys(map(str, folders)):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise LitPruneError(f"there is no folder {name}; a run is a folder that lit-prune has written")
        found = [each for each in (_model(name, folder),) if each is not None]
        models += found
        if (folder / EVALUATION_FILE).is_file():
            evaluations.append(read_evaluation(name))
        if (folder / RESULTS_FILE).is_file():
            settings, rows = read_results(folder / RESULTS_FILE)
            comparisons.append(ComparisonRun(name, settings, _some(rows, folder / RESULTS_FILE)))
        if (folder / ANALYSIS_FILE).is_file():
            analyses.append(_analysis(name, folder))
        if not found and not any((folder / each).is_file() for each in (EVALUATION_FILE, RESULTS_FILE, ANALYSIS_FILE)):
            raise LitPruneError(_nothing_in(name, folder))
    return Sources(tuple(models), tuple(evaluations), tuple(comparisons), tuple(analyses))


def _analysis(name: str, folder: Path) -> AnalysisRun:
    path = folder / ANALYSIS_FILE
    try:
        data = read_json(path.read_text(encoding="utf-8"))
        models = tuple(str(each["model"]) for each in data["models"])
        files = {title: folder / f"{file}.png" for file, title in PICTURES.items()}
        pictures = {title: file.read_bytes() for title, file in files.items() if file.is_file()}
        return AnalysisRun(name, dict(data["settings"]), _some(models, path), pictures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read the analysis {path}: {error!r}; make it again") from error


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read what `evaluate` left in a folder.

    Raises:
        DataError: The file cannot be read, is damaged, or holds no model.
    """
    path = Path(folder).expanduser() / EVALUATION_FILE
    try:
        data = read_json(path.read_text(encoding="utf-8"))
        rows = [Measured.from_dict(each) for each in data["models"]]
        answers = tuple(_dialogue(each) for each in data.get("answers") or ())
        signs = {name: checked(Signs, each) for name, each in (data.get("signs") or {}).items()}
        settings = dict(data["settings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read the evaluation {path}: {error!r}; make it again") from error
    against = settings.pop("against", None)
    return Evaluation(str(folder), settings, _some(rows, path), against, answers, signs)


def _some(rows: Iterable[Any], path: Path) -> tuple[Any, ...]:
    found = tuple(rows)
    if not found:
        raise DataError(f"{path} holds no rows yet; finish the command that writes it")
    return found


def _dialogue(data: Mapping[str, Any]) -> Dialogue:
    return Dialogue(_turns(data["prompt"]), {str(name): _turns(each) for name, each in data["answers"].items()})


def _turns(data: Any) -> Turns:
    """One text, texts, or a chat's mappings with `content`, as texts."""
    listed = data if isinstance(data, list) else [data]
    return tuple(str(each["content"] if isinstance(each, dict) else each) for each in listed)


def _model(name: str, folder: Path) -> ModelRun | None:
    """A pruned model, or a training with one inside; None where the folder is neither."""
    summary = read_summary(folder / SUMMARY_FILE) if (folder / SUMMARY_FILE).is_file() else None
    events = any(folder.glob(EVENTS))
    if (folder / PLAN_FILE).is_file():
        inside: Path | None = folder
    elif summary or events:
        inside = next((each.parent for each in sorted(folder.glob(f"*/{PLAN_FILE}"))), None)
    else:
        return None
    plan = PrunePlan.load(inside) if inside else summary.plan if summary else None
    if inside is not None and not (inside / "config.json").is_file():
        inside = None
    texts = {each: folder / each for each in SETTINGS_FILES if (folder / each).is_file()}
    settings = {each: path.read_text(encoding="utf-8", errors="replace") for each, path in texts.items()}
    model_name = name if inside in (folder, None) else str(Path(name) / inside.name)
    return ModelRun(name, inside, plan, summary, _curves(folder) if events else {}, settings, model_name)


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    module: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    # All scalars; of the rest, one each is read.
    wanted = {module.SCALARS: 0, module.IMAGES: 1, module.TENSORS: 1}
    events = module.EventAccumulator(str(folder), size_guidance=wanted)
    events.Reload()
    present = [tag for tag in CURVES if tag in events.Tags()["scalars"]]
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in present}


def _nothing_in(name: str, folder: Path) -> str:
    files = "; ".join(f"{file} ({verb})" for file, verb in LOOKED_FOR.items())
    inside = sorted(str(Path(name) / each.parent.name) for each in folder.glob(f"*/{PLAN_FILE}"))
    hint = f". It holds runs: {', '.join(inside[:8])}" if inside else ""
    return f"{name} is no run of lit-prune. Looked for {files}{hint}"
