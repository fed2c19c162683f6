"""`BeforeAfterCallback`: the same model before and after a run, measured the same way and written on one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel

from lit_prune.anatomy import context_length, count_parameters, find_sublayers
from lit_prune.errors import LitPruneError
from lit_prune.evaluation import Ideal, Speed, answer, compare_speed, dense_twin, perplexity
from lit_prune.files import write_text
from lit_prune.loading.processes import processes_of_trainer
from lit_prune.loading.trees import EitherCallback, either
from lit_prune.plan import PrunePlan
from lit_prune.report import (
    Answer,
    Row,
    Summary,
    answer_markdown,
    log_files,
    log_scalars,
    log_text,
    plan_score_map,
    print_summary,
    save_figure,
    save_summary,
    summary_markdown,
)
from lit_prune.report.page import report_page

from . import requirements, trainers
from .sublayer_prune import SublayerPruneCallback
from .validation import inputs_of, validation_batches

PAGE_FILE = "report.html"
FIGURES = ("final/ppl_before", "final/ppl", "final/prefill_speedup", "final/decode_speedup")
"""Logged at the end: perplexities, then how many times as fast as before a prompt is read, and a token is written."""


@dataclass(frozen=True)
class HeldOut:
    """The text to measure perplexity on: what to call it in the table, what it is, and its batches."""

    kind: str
    name: str
    batches: Iterable[Any]


class BeforeAfterCallback(EitherCallback):
    """Measures parameters, held-out perplexity, speed and one answer before and after pruning.

    Leaves `summary.md`, `summary.json`, `score_map.png` and `report.html` in the run's folder, shows the summary
    on the screen, and logs the answers. Put it behind `SublayerPruneCallback`, whose plan it reports.

    Perplexity is on the data module's test batches, which neither training nor scoring sees. Speed compares the pruned
    model with a randomly initialised dense copy at the end of the run, in turns, so that a busy machine hits both; on a
    CPU beside the ideal, the dense model's time less that of what went.

    Args:
        question: The question that is asked before and after, and answered by greedy decoding.
        max_new_tokens: The greatest length of the answers, in tokens.
        prompt_tokens: The length of the prompt whose prefill is timed, in tokens.
        new_tokens: The number of decoding steps that are timed.
        repeats: The number of timings, of which the median counts; 0 leaves speed out, as a sharded model wants it.
        model: The attribute path of the model in your module, where there are several.
    """

    def __init__(
        self,
        question: str = "What is gravity?",
        *,
        max_new_tokens: int = 48,
        prompt_tokens: int = 128,
        new_tokens: int = 32,
        repeats: int = 5,
        model: str | None = None,
    ) -> None:
        self.question = question
        self.max_new_tokens = max_new_tokens
        self.prompt_tokens = prompt_tokens
        self.new_tokens = new_tokens
        self.repeats = repeats
        self.model = model
        self._before: dict[str, Any] = {}

    @property
    def final_figures(self) -> tuple[str, ...]:
        """Names of what is logged at the end, for `SublayerPruneCallback`, which names them with the settings."""
        return FIGURES if self.repeats else FIGURES[:2]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run without a plan to report, or with timings longer than the model's context."""
        if stage != "fit":
            return
        self._before = {}  # a checkpoint's come later, with load_state_dict
        self._pruning(trainer)
        if self.repeats:
            requirements.require_whole_model(trainer, "the timing of BeforeAfterCallback", "give it repeats: 0")
        context = context_length(trainers.model_in(pl_module, self.model).config)
        timed = self.prompt_tokens + self.new_tokens
        if self.repeats and context is not None and timed > context:
            raise LitPruneError(
                f"BeforeAfterCallback times {timed} tokens, the model's context holds {context}; "
                "lower prompt_tokens or new_tokens"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the dense model, unless a checkpoint brought its figures, or it is no longer dense."""
        if self._before:
            return
        plan = self._pruning(trainer).plan
        if plan is not None and plan.steps:
            self._before = {"parameters": plan.model.num_parameters, "ppl": None, "answer": "(not measured)"}
            return
        batches = self._held_out(trainer)
        trainers.on_holders(trainer, lambda: self._before.update(self._measure(trainer, pl_module, batches)))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the pruned model, write and show the summary."""
        folder, batches = trainers.run_folder(trainer), self._held_out(trainer)
        after: dict[str, Any] = {}
        trainers.on_holders(trainer, lambda: after.update(self._measure(trainer, pl_module, batches)))
        processes_of_trainer(trainer).first(lambda: self._report(trainer, pl_module, folder, batches, after))

    def state_dict(self) -> dict[str, Any]:
        """The dense model's figures."""
        return dict(self._before)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run has no dense model any more; its figures come from the checkpoint."""
        self._before = dict(state_dict)

    def _report(
        self, trainer: L.Trainer, module: L.LightningModule, folder: Path, held_out: HeldOut, after: dict[str, Any]
    ) -> None:
        plan, before = self._pruning(trainer).whole_plan(trainer), self._before
        speeds = self._speeds(trainers.model_in(module, self.model), plan)
        rows = [
            Row("parameters", before["parameters"], after["parameters"]),
            Row(f"perplexity on {held_out.kind}", before["ppl"], after["ppl"]),
            *(_speed_rows(speeds["before"], speeds["after"]) if speeds else ()),
        ]
        answers = [Answer(self.question, before["answer"], after["answer"])] if "answer" in after else []
        notes = [f"Perplexity: {held_out.name}, {after['windows']}.", *_ideal_in_words(speeds)]
        summary = Summary(rows, plan, answers, notes)
        ratios = speeds["after"].times_as_fast(speeds["before"]) if speeds else ()
        print_summary(summary)
        files = [] if trainers.leaves_nothing(trainer) else _written(folder, summary)
        _log(trainer, dict(zip(FIGURES, (before["ppl"], after["ppl"], *ratios), strict=False)), answers, files)
        if files:
            shown = ", ".join(str(folder / name) for name in ("summary.md", "score_map.png", PAGE_FILE))
            trainer.print(f"written: {shown}")

    def _measure(self, trainer: L.Trainer, module: L.LightningModule, held_out: HeldOut) -> dict[str, Any]:
        model = trainers.model_in(module, self.model)
        with isolate_rng(), trainer.precision_plugin.forward_context():
            found = perplexity(model, held_out.batches)
            windows = f"{found.num_windows} windows of {found.window} tokens"
            measured = {"parameters": count_parameters([model]), "ppl": found.ppl, "windows": windows}
            if (tokenizer := getattr(module, "tokenizer", None)) is not None:
                measured["answer"] = answer(model, tokenizer, self.question, max_new_tokens=self.max_new_tokens)
        return measured

    def _held_out(self, trainer: L.Trainer) -> HeldOut:
        """The text of every process: fetching validation batches is a collective."""
        data = getattr(trainer, "datamodule", None)
        if data is None or not any(
            is_overridden("test_dataloader", data, each)
            for each in either(L.LightningDataModule)
            if isinstance(data, each)
        ):
            batches = [batch.scored for batch in validation_batches(trainer, None)]
            return HeldOut("validation text", "validation batches, which also scored what was removed", batches)
        data.setup("test")
        name = "test batches, used neither for training nor for scoring"
        return HeldOut("held-out text", name, (inputs_of(trainer, batch) for batch in data.test_dataloader()))

    def _speeds(self, model: PreTrainedModel, plan: PrunePlan) -> dict[str, Speed]:
        """The speeds of the dense and of the pruned model, and the ideal one; none where they are not asked for."""
        if not self.repeats:
            return {}
        models = {"before": dense_twin(model), "after": model}
        ideal = Ideal.of("before", find_sublayers(models["before"]), plan.removed)
        ideals = {"ideal": ideal} if ideal.without and model.device.type == "cpu" else {}
        return compare_speed(
            models,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            repeats=self.repeats,
            ideals=ideals,
        )

    def _pruning(self, trainer: L.Trainer) -> SublayerPruneCallback:
        callbacks = trainers.callbacks_of(trainer)
        before = [other for other in callbacks[: callbacks.index(self)] if isinstance(other, SublayerPruneCallback)]
        if not before:
            raise LitPruneError("BeforeAfterCallback reports what SublayerPruneCallback does; add that one before it")
        return before[0]


def _written(folder: Path, summary: Summary) -> list[Path]:
    title = f"{summary.plan.scorer.get('name', '')} of every sublayer, and what went"
    files = [
        write_text(folder / "summary.md", summary_markdown(summary)),
        save_summary(folder, summary),
        save_figure(plan_score_map(summary.plan, title), folder / "score_map.png"),
    ]
    return [*files, write_text(folder / PAGE_FILE, report_page([folder]))]


def _ideal_in_words(speeds: Mapping[str, Speed]) -> Iterator[str]:
    if "ideal" in speeds:
        read, written = speeds["ideal"].times_as_fast(speeds["before"])
        yield (
            "Ideal: without the time of what went, the dense model would read the prompt "
            f"{read:.2f} times as fast, and write {written:.2f} times as fast."
        )


def _log(trainer: L.Trainer, figures: dict[str, float | None], answers: list[Answer], files: list[Path]) -> None:
    known = {name: value for name, value in figures.items() if value is not None}
    step = trainers.logged_step(trainer)
    for logger in trainer.loggers:
        log_scalars(logger, known, step)
        for answered in answers:
            log_text(logger, "answers", answer_markdown(answered), step)
        log_files(logger, files)


def _speed_rows(dense: Speed, pruned: Speed) -> list[Row]:
    prompt = f"prefill of {dense.batch} x {dense.prompt_tokens} tokens ({dense.device}, {dense.dtype})"
    row = partial(Row, unit="ms", better="lower")
    return [
        row(prompt, 1e3 * dense.prefill_seconds, 1e3 * pruned.prefill_seconds),
        row("decoding, per token", 1e3 * dense.decode_seconds_per_token, 1e3 * pruned.decode_seconds_per_token),
    ]
