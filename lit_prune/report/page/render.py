"""Folders that lit-prune has written in, one HTML page out: no scripts, no network, what others wrote escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import eq
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lit_prune.errors import LitPruneError
from lit_prune.evaluation import Measured
from lit_prune.files import clean
from lit_prune.plan import PLAN_FILE
from lit_prune.report.analyses import ANALYSIS_FILE, analysis_pieces
from lit_prune.report.comparisons import RESULTS_FILE, comparison_pieces
from lit_prune.report.evaluations import EVALUATION_FILE, Evaluation, Match, evaluation_pieces, read_evaluation
from lit_prune.report.pieces import Piece
from lit_prune.report.runs import EVENTS, ModelRun, overview_pieces, read_run, run_pieces
from lit_prune.report.summary import SUMMARY_FILE

LOOKED_FOR = {
    PLAN_FILE: "prune, apply, heal",
    f"{SUMMARY_FILE} or {EVENTS}": "fit",
    EVALUATION_FILE: "evaluate",
    RESULTS_FILE: "compare",
    ANALYSIS_FILE: "analyse",
}


@dataclass(frozen=True)
class Sources:
    """Everything that a page is made of, in the order in which it was given; sections by the names of their folders."""

    models: Sequence[ModelRun] = ()
    evaluations: Sequence[Evaluation] = ()
    comparisons: Mapping[str, list[Piece]] = field(default_factory=dict)
    analyses: Mapping[str, list[Piece]] = field(default_factory=dict)

    def matches(self, run: ModelRun) -> list[Match]:
        """The rows of a run in evaluations, by the folder, else by the end of its path; what fits two runs is of none.

        Example:
            >>> evaluation = Evaluation("evaluation", {}, (Measured("out/healed", 7, {}, {}),))
            >>> runs = [ModelRun(name, Path(name), None) for name in ("/data/out/healed", "/data/out/pruned")]
            >>> [len(Sources(runs, [evaluation]).matches(run)) for run in runs]
            [1, 0]
        """
        return [
            Match(evaluation, row, _reference(run, row, evaluation))
            for evaluation in self.evaluations
            for row in evaluation.rows
            if self._owner(row.model) is run
        ]

    def _owner(self, model: str) -> ModelRun | None:
        path = Path(model).expanduser()
        saved = [(run, run.model.resolve()) for run in self.models if run.model is not None]
        owners = [run for run, folder in saved if path.exists() and path.resolve() == folder]
        # The evaluation may have been made in another folder, from which one path is the end of the other.
        end = path.parts[::-1]
        owners = owners or [run for run, folder in saved if end and all(map(eq, end, folder.parts[::-1]))]
        return owners[0] if len(owners) == 1 else None


def _reference(run: ModelRun, row: Measured, evaluation: Evaluation) -> Measured | None:
    """What was named as the reference, else the model that the plan names."""
    name = evaluation.against or (run.plan.model.name if run.plan is not None else "")
    return next((other for other in evaluation.rows if other.model == name and other is not row), None)


def read_sources(folders: Iterable[str | Path]) -> Sources:
    """Read folders that lit-prune has written, each of which may be several things at once.

    Raises:
        LitPruneError: A folder is missing, or holds nothing of lit-prune.
        DataError: A file in it is damaged.
        PlanError: Its plan is damaged.
    """
    models: list[ModelRun] = []
    evaluations: list[Evaluation] = []
    comparisons: dict[str, list[Piece]] = {}
    analyses: dict[str, list[Piece]] = {}
    for name in dict.fromkeys(map(str, folders)):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise LitPruneError(f"there is no folder {name}; a run is a folder that lit-prune has written")
        files = {file for file in (EVALUATION_FILE, RESULTS_FILE, ANALYSIS_FILE) if (folder / file).is_file()}
        if run := read_run(name, folder):
            models.append(run)
        elif not files:
            raise LitPruneError(_nothing_in(name, folder))
        if EVALUATION_FILE in files:
            evaluations.append(read_evaluation(name))
        if RESULTS_FILE in files:
            comparisons[name] = list(comparison_pieces(folder))
        if ANALYSIS_FILE in files:
            analyses[name] = analysis_pieces(folder)
    return Sources(models, evaluations, comparisons, analyses)


def _nothing_in(name: str, folder: Path) -> str:
    files = "; ".join(f"{file} ({verb})" for file, verb in LOOKED_FOR.items())
    inside = sorted(str(Path(name) / plan.parent.name) for plan in folder.glob(f"*/{PLAN_FILE}"))
    hint = f". It holds runs: {', '.join(inside[:8])}" if inside else ""
    return f"{name} is no run of lit-prune. Looked for {files}{hint}"


def report_page(folders: Sequence[str | Path], *, trust_remote_code: bool = False) -> str:
    """Write one HTML page about runs.

    Args:
        folders: Folders that lit-prune has written: pruned models, trainings, evaluations, comparisons, analyses.
            Evaluations are put to the models that they measured, by the models' folders.
        trust_remote_code: Run code that comes with a model, to find out how it is loaded.

    Raises:
        LitPruneError: A folder holds nothing of lit-prune, or a file in it is damaged.
    """
    sources = read_sources(folders)
    models = sources.models
    evaluations = [evaluation.name for evaluation in sources.evaluations]
    names = [*(run.name for run in models), *sources.comparisons, *evaluations, *sources.analyses]
    found = [sources.matches(run) for run in models]
    environment = Environment(
        loader=PackageLoader("lit_prune.report.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # No page may hold some characters.
        finalize=lambda value: clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters["code"] = _code
    return environment.get_template("page.html.jinja").render(
        version=version("lit-prune"),
        title=", ".join(dict.fromkeys(names)),
        several=len(models) + len(sources.comparisons) > 1,
        overview=list(overview_pieces(models, drawn=not sources.evaluations)) if len(models) > 1 else [],
        runs=[
            (run.name, list(run_pieces(run, own, trust_remote_code=trust_remote_code)))
            for run, own in zip(models, found, strict=True)
        ],
        evaluations=list(_evaluations(sources, [match for own in found for match in own])),
        comparisons=list(sources.comparisons.items()),
        analyses=list(sources.analyses.items()),
    )


def _code(text: str) -> Markup:
    """Plain text whose parts between backticks are code, as in Markdown."""
    parts = [escape(clean(part)) for part in text.split("`")]
    parts[1::2] = [Markup("<code>{}</code>").format(part) for part in parts[1::2]]
    return Markup("").join(parts)


def _evaluations(sources: Sources, found: Iterable[Match]) -> Iterator[tuple[str, list[Piece]]]:
    """Names and pieces; a pair that a run shows whole is not shown twice."""
    found = list(found)
    bases = {run.plan.model.name for run in sources.models if run.plan}
    base = bases.pop() if len(bases) == 1 else ""
    for evaluation in sources.evaluations:
        own = [match for match in found if match.evaluation is evaluation]
        new_answers = bool(evaluation.answers) and not any(match.holds_answers for match in own)
        shown = {model for match in own for model in match.models}
        if len(evaluation.rows) > 2 or new_answers or not {row.model for row in evaluation.rows} <= shown:
            yield evaluation.name, list(evaluation_pieces(evaluation, base, with_answers=new_answers))
