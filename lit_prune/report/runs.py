"""Runs of prune, apply, heal and fit: what they left in a folder, and the section of the page that shows it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune.measure import perplexity_of
from lit_prune.plan import PLAN_FILE, PrunePlan, manners_in_words, unseen_in_words
from lit_prune.report.drawing import BLUE, RED, name_axes, points_drawing, svg
from lit_prune.report.evaluations import Dialogue, Match, match_pieces, perplexities
from lit_prune.report.pieces import Piece, Table, count, ppl, titled
from lit_prune.report.plan_views import calibration_ppl, made_pieces, search_pieces, usage_pieces
from lit_prune.report.summary import (
    SUMMARY_FILE,
    TIMES,
    Row,
    Summary,
    base_of,
    figures_of,
    figures_table,
    read_summary,
    shares_left,
)
from lit_prune.searches import outcome_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EVENTS = "events.out.tfevents.*"
SETTINGS_FILES = ("config.yaml", "hparams.yaml")
PPL_CURVE, LEFT_CURVE = CURVES = ("val_ppl", "prune/parameters_left")
"""Scalars that the page draws."""
RUNS = ("run", "made from", "method", "made up for", "parameters", "removed", "passes", "ppl before", "ppl after",
        "healing, ppl")  # fmt: skip
Curve = Sequence[tuple[int, float]]
Card = tuple[str, str, str]
"""What a figure is, the figure, and a remark."""


@dataclass(frozen=True)
class ModelRun:
    """What `prune`, `apply`, `heal` or `fit` left.

    `name` is the folder as it was given, `model` that of the pruned model (None where none was saved) and `model_name`
    the same in the words of `name`. `curves` are scalars of a training, `settings` texts of files, by their names.
    """

    name: str
    model: Path | None
    plan: PrunePlan | None
    summary: Summary | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    model_name: str = ""


def read_run(name: str, folder: Path) -> ModelRun | None:
    """Read a pruned model, or a training with one inside; None where the folder is neither."""
    summary = read_summary(folder / SUMMARY_FILE) if (folder / SUMMARY_FILE).is_file() else None
    events = any(folder.glob(EVENTS))
    # A training has its plan beside its log, and the model inside.
    below = sorted(folder.glob(f"*/{PLAN_FILE}")) if summary or events else []
    planned = [path.parent for path in (folder / PLAN_FILE, *below) if path.is_file()]
    if not (summary or events or planned):
        return None
    plan = PrunePlan.load(planned[0]) if planned else summary.plan if summary else None
    inside = next((each for each in planned if (each / "config.json").is_file()), None)
    files = {file: folder / file for file in SETTINGS_FILES if (folder / file).is_file()}
    settings = {file: path.read_text(encoding="utf-8", errors="replace") for file, path in files.items()}
    model_name = name if inside in (folder, None) else str(Path(name) / inside.name)
    return ModelRun(name, inside, plan, summary, _curves(folder) if events else {}, settings, model_name)


def _curves(folder: Path) -> dict[str, Curve]:
    module: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    # All scalars; of the rest, one each is read.
    wanted = {module.SCALARS: 0, module.IMAGES: 1, module.TENSORS: 1}
    events = module.EventAccumulator(str(folder), size_guidance=wanted)
    events.Reload()
    present = [tag for tag in CURVES if tag in events.Tags()["scalars"]]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in present}


def run_pieces(run: ModelRun, found: Sequence[Match], *, trust_remote_code: bool = False) -> Iterator[Piece]:
    """The section of a run and its rows of evaluations, without what there is no data for."""
    if run.plan:
        yield Piece("lead", base_of(run.plan))
    # Two evaluations may have measured the same.
    if cards := list(dict.fromkeys(_cards(run, found))):
        yield Piece("cards", cards)
    if run.plan:
        yield from search_pieces(run.plan)
    if run.summary:
        yield Piece("heading", "Before and after")
        yield Piece("table", figures_table(run.summary.rows))
        yield from (Piece("note", note) for note in run.summary.notes)
    if run.curves:
        yield Piece("heading", "Training")
        yield Piece("figures", [_training_drawing(run.curves)])
    yield from match_pieces(found)
    yield from titled("Answers side by side", _dialogues(run, found))
    if run.model is not None:
        yield from usage_pieces(run.model, run.model_name, run.plan, trust_remote_code=trust_remote_code)
    yield from made_pieces(run.plan, run.settings)


def overview_pieces(runs: Sequence[ModelRun], *, drawn: bool) -> Iterator[Piece]:
    """Runs side by side; perplexity on the calibration text is drawn where no evaluation says more."""
    rows = [[run.name, *(_overview(run.plan) if run.plan else [""] * (len(RUNS) - 1))] for run in runs]
    note = "ppl before, after: perplexity on each run's own calibration text, at the first and the last removal"
    yield Piece("table", Table.of(RUNS, rows, words=RUNS[:4], note=note))
    points = {}
    for run in runs:
        last = run.plan.steps[-1].nll_after if run.plan and run.plan.steps else None
        if drawn and run.plan and last is not None:
            points[run.name] = (100 * shares_left(run.plan)[-1], perplexity_of(last))
    yield Piece("figures", [points_drawing(points, "parameters left (%)", "perplexity, calibration tokens")])


def _overview(plan: PrunePlan) -> Iterator[str]:
    yield base_of(plan)
    yield ", ".join(str(settings["name"]) for settings in (plan.scorer, plan.search) if settings.get("name"))
    yield str(plan.compensation.get("name", ""))
    yield f"{plan.model.num_parameters - plan.num_removed_parameters:,}"
    yield f"{plan.num_removed_parameters / plan.model.num_parameters:.1%}"
    yield f"{plan.cost:,.1f}"
    yield from calibration_ppl(plan) or ("", "")
    yield _healed(plan.healing) if "ppl_after" in plan.healing else ""


def _healed(healing: Mapping[str, Any]) -> str:
    return f"{ppl(healing['ppl_before'])} → {ppl(healing['ppl_after'])}"


def _cards(run: ModelRun, found: Sequence[Match]) -> Iterator[Card]:
    plan = run.plan
    if plan is not None:
        before, gone = plan.model.num_parameters, plan.num_removed_parameters
        yield "parameters", f"{count(before)} → {count(before - gone)}", f"{gone:,} removed"
        yield "removed", f"{gone / before:.1%}", f"of the parameters, in {len(plan.steps)} removals"
        for line in outcome_in_words(plan.budget):
            what, _, value = line.rpartition(": ")
            yield "budget", value, what
        for name, perplexities, times in unseen_in_words(plan.unseen):
            yield f"perplexity, unseen {name}", perplexities.replace("->", "→"), times
    yield from _perplexity_cards(run, found)
    yield from _summary_cards(run, lambda row: row.unit in TIMES)
    if plan is not None and plan.steps:
        tokens = plan.calibration.get("num_tokens")
        over = f", over {tokens:,} tokens" if isinstance(tokens, int) else ""
        yield "cost of the search", f"{plan.cost:,.1f}", f"dense forward passes{over}"
    if plan is not None and "ppl_after" in plan.healing:
        tokens = f"{plan.healing['tokens']:,} tokens"
        if plan.healing.get("step"):
            yield "healing", _healed(plan.healing), f"perplexity on validation windows, {tokens}"
            for name, shares in manners_in_words(plan.healing.get("manners", {})):
                yield name, shares.replace("->", "→"), "going on with beginnings of validation windows, by healing"
        else:
            yield "healing", "did not help", f"perplexity {ppl(plan.healing['ppl_before'])}, {tokens}"


def _perplexity_cards(run: ModelRun, found: Sequence[Match]) -> Iterator[Card]:
    cards = []
    for match in found:
        for name, *shown, change, _ in perplexities(match.after, match.before) if match.before else ():
            before, after = (text.partition(" ±")[0] for text in shown)
            cards.append((f"perplexity, {name}", f"{before} → {after}", change))
    cards += _summary_cards(run, lambda row: row.name.startswith("perplexity"))
    yield from cards
    if not cards and run.plan and (calibration := calibration_ppl(run.plan)):
        yield "perplexity, calibration text", " → ".join(calibration), "which also scored; before any healing"


def _summary_cards(run: ModelRun, wanted: Callable[[Row], bool]) -> Iterator[Card]:
    for name, before, after, change in map(figures_of, filter(wanted, run.summary.rows if run.summary else ())):
        yield name, f"{before} → {after}", change


def _dialogues(run: ModelRun, found: Sequence[Match]) -> Iterator[Piece]:
    for answer in run.summary.answers if run.summary else ():
        answers = {"before": (answer.before,), "after": (answer.after,)}
        yield Dialogue((answer.question,), answers).piece(list(answers))
    for match in found:
        for dialogue in match.evaluation.answers if match.holds_answers else ():
            yield dialogue.piece([model for model in match.models if model in dialogue.answers])


def _training_drawing(curves: Mapping[str, Curve]) -> str:
    """Perplexity on validation text and parameters left over the steps of a training."""
    validation, left = curves.get(PPL_CURVE, ()), curves.get(LEFT_CURVE, ())

    def draw(axis: Axes) -> None:
        if validation:
            axis.plot(*zip(*validation, strict=True), color=BLUE, marker="o", markersize=4, label="perplexity")
            name_axes(axis, "optimizer step", "validation perplexity")
        if left:
            beside = axis.twinx() if validation else axis
            steps, shares = zip(*left, strict=True)
            percent = [100.0, *(100 * share for share in shares)]
            beside.step([0, *steps], percent, where="post", color=RED, linestyle="--", label="parameters left")
            beside.spines["right"].set_visible(True)
            beside.set_ylabel("parameters left (%)")
            beside.set_xlabel("optimizer step")
        axis.figure.legend(loc="outside lower center", ncols=2, frameon=False)

    what = "Perplexity on validation text and parameters left, step by step"
    return svg(draw, what) if validation or left else ""
