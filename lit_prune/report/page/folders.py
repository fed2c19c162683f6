"""Folders that lit-prune has written, read for the page. Knows which files there are, nothing of HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lit_prune.errors import LitPruneError
from lit_prune.evaluation import Measured, read_results
from lit_prune.plan import PLAN_FILE
from lit_prune.report.analyses import ANALYSIS_FILE, AnalysisRun, read_analysis
from lit_prune.report.comparisons import RESULTS_FILE, ComparisonRun
from lit_prune.report.evaluations import EVALUATION_FILE, Evaluation, Match, read_evaluation, require_rows
from lit_prune.report.runs import EVENTS, ModelRun, read_run
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
    """Everything that a page is made of, in the order in which it was given."""

    models: tuple[ModelRun, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    comparisons: tuple[ComparisonRun, ...] = ()
    analyses: tuple[AnalysisRun, ...] = ()

    @property
    def names(self) -> list[str]:
        """The folders, without repetition."""
        others = [[found.name for found in kind] for kind in (self.comparisons, self.evaluations, self.analyses)]
        return list(dict.fromkeys([*(run.name for run in self.models), *(name for names in others for name in names)]))

    def matches(self, run: ModelRun) -> list[Match]:
        """The rows of a run in evaluations, by the folder, else by the end of its path; what fits two runs is of none.

        Example:
            >>> evaluation = Evaluation("evaluation", {}, (Measured("out/healed", 7, {}, {}),))
            >>> runs = [ModelRun(name, Path(name), None) for name in ("/data/out/healed", "/data/out/pruned")]
            >>> [len(Sources(tuple(runs), (evaluation,)).matches(run)) for run in runs]
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
        # The evaluation may have been made in another folder.
        owners = owners or [run for run, folder in saved if _one_ends_the_other(path, folder)]
        return owners[0] if len(owners) == 1 else None


def read_sources(folders: Iterable[str | Path]) -> Sources:
    """Read folders that lit-prune has written, each of which may be several things at once.

    Raises:
        LitPruneError: A folder is missing, or holds nothing of lit-prune.
        DataError: A file in it is damaged.
        PlanError: Its plan is damaged.
    """
    models: list[ModelRun] = []
    evaluations: list[Evaluation] = []
    comparisons: list[ComparisonRun] = []
    analyses: list[AnalysisRun] = []
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
            settings, rows = read_results(folder / RESULTS_FILE)
            require_rows(rows, folder / RESULTS_FILE)
            comparisons.append(ComparisonRun(name, settings, tuple(rows)))
        if ANALYSIS_FILE in files:
            analyses.append(read_analysis(name, folder))
    return Sources(tuple(models), tuple(evaluations), tuple(comparisons), tuple(analyses))


def _one_ends_the_other(one: Path, other: Path) -> bool:
    number = min(len(one.parts), len(other.parts))
    return number > 0 and one.parts[-number:] == other.parts[-number:]


def _reference(run: ModelRun, row: Measured, evaluation: Evaluation) -> Measured | None:
    """What was named as the reference, else the model that the plan names."""
    name = evaluation.against or (run.plan.model.name if run.plan is not None else "")
    return next((other for other in evaluation.rows if other.model == name and other is not row), None)


def _nothing_in(name: str, folder: Path) -> str:
    files = "; ".join(f"{file} ({verb})" for file, verb in LOOKED_FOR.items())
    inside = sorted(str(Path(name) / plan.parent.name) for plan in folder.glob(f"*/{PLAN_FILE}"))
    hint = f". It holds runs: {', '.join(inside[:8])}" if inside else ""
    return f"{name} is no run of lit-prune. Looked for {files}{hint}"
