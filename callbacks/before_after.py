"""`BeforeAfterCallback`: the same model before and after a run, measured the same way and written on one page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel

from lit_prune.anatomy import context_length, count_parameters
from lit_prune.errors import LitPruneError
from lit_prune.evaluation import Speed, answer, compare_speed, dense_twin, perplexity
from lit_prune.files import write_text
from lit_prune.report import (
    Answer,
    Row,
    answer_markdown,
    log_scalars,
    log_text,
    print_summary,
    save_figure,
    save_summary,
    summary_markdown,
)

from . import loop, requirements
from .story import score_map_of
from .sublayer_prune import SublayerPruneCallback
from .validation import fed_batches, transferred

SPEEDS = ("prefill_speedup", "decode_speedup")
"""How many times as fast as before a prompt is read, and a token is written."""


@dataclass(frozen=True)
class HeldOut:
    """Text to measure perplexity on: what to call it in the table, what it is, and its batches."""

    kind: str
    name: str
    batches: Iterable[Any]


class BeforeAfterCallback(Callback):
    """Measures parameters, held-out perplexity, speed and one answer before and after pruning.

    Leaves `summary.md`, `summary.json` and `score_map.png` in the run's folder, shows the summary on the screen, and
    logs the answers. Put it behind `SublayerPruneCallback`, whose plan it reports.

    Perplexity is on the data module's test batches, which neither training nor scoring sees. Speed compares the pruned
    model with a randomly initialised dense copy at the end of the run, in turns, so that a busy machine hits both.

    Args:
        question: Asked before and after, by greedy decoding.
        max_new_tokens: Length of the answers.
        prompt_tokens: Length of the prompt whose prefill is timed.
        new_tokens: Decoding steps that are timed.
        repeats: Timings of each, of which the median counts; 0 leaves speed out, as a sharded model wants it.
        model: Attribute path of the model in your module, where there are several.
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
        return tuple(f"final/{name}" for name in ("ppl_before", "ppl", *(SPEEDS if self.repeats else ())))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run without a plan to report, or with timings that the model has no room for."""
        if stage != "fit":
            return
        self._before = {}  # a checkpoint's come later, with load_state_dict
        self._require_order(trainer)
        if self.repeats:
            requirements.require_whole_model(trainer, "the timing of BeforeAfterCallback", "give it repeats: 0")
        context = context_length(loop.model_in(pl_module, self.model).config)
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
        loop.on_holders(trainer, lambda: self._before.update(self._measure(trainer, pl_module, batches)))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the pruned model, write and show the summary."""
        folder, batches = loop.run_folder(trainer), self._held_out(trainer)
        after: dict[str, Any] = {}
        loop.on_holders(trainer, lambda: after.update(self._measure(trainer, pl_module, batches)))
        loop.on_first_process(trainer, lambda: self._report(trainer, pl_module, folder, batches, after))

    def state_dict(self) -> dict[str, Any]:
        """The dense model's figures."""
        return dict(self._before)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run has no dense model any more; its figures come from the checkpoint."""
        self._before = dict(state_dict)

    def _report(
        self, trainer: L.Trainer, module: L.LightningModule, folder: Path, batches: HeldOut, after: dict[str, Any]
    ) -> None:
        plan = self._pruning(trainer).plan
        assert plan is not None
        speeds = self._speeds(loop.model_in(module, self.model))
        rows = _rows(self._before, after, batches) + _speed_rows(speeds)
        answers = [Answer(self.question, self._before["answer"], after["answer"])] if "answer" in after else []
        notes = [f"Perplexity: {batches.name}, {after['windows']}."]
        figures = {"ppl_before": self._before["ppl"], "ppl": after["ppl"], **_ratios(speeds)}
        for logger in trainer.loggers:
            log_scalars(
                logger,
                {f"final/{name}": value for name, value in figures.items() if value is not None},
                trainer.global_step,
            )
            for reply in answers:
                log_text(logger, "answers", answer_markdown(reply), trainer.global_step)
        print_summary(rows, plan=plan, answers=answers, notes=notes)
        if loop.leaves_nothing(trainer):
            return
        title = f"{plan.scorer.get('name', '')} of every sublayer, and what went"
        write_text(folder / "summary.md", summary_markdown(rows, plan=plan, answers=answers, notes=notes))
        save_summary(folder, rows, plan=plan, answers=answers, notes=notes)
        save_figure(score_map_of(plan, title), folder / "score_map.png")
        trainer.print(f"written: {folder / 'summary.md'}, {folder / 'score_map.png'}")

    def _measure(self, trainer: L.Trainer, module: L.LightningModule, held_out: HeldOut) -> dict[str, Any]:
        model = loop.model_in(module, self.model)
        with isolate_rng(), trainer.precision_plugin.forward_context():
            found = perplexity(model, held_out.batches)
            tokenizer = getattr(module, "tokenizer", None)
            reply = {} if tokenizer is None else {
                "answer": answer(model, tokenizer, self.question, max_new_tokens=self.max_new_tokens)
            }  # fmt: skip
        windows = f"{found.num_windows} windows of {found.window} tokens"
        return {"parameters": count_parameters([model]), "ppl": found.ppl, "windows": windows, **reply}

    def _held_out(self, trainer: L.Trainer) -> HeldOut:
        """The same on every process: fetching validation batches is a collective."""
        data = getattr(trainer, "datamodule", None)
        if data is None or not is_overridden("test_dataloader", data, L.LightningDataModule):
            batches = [batch.scored for batch in fed_batches(trainer, None)]
            return HeldOut("validation text", "validation batches, which also scored what was removed", batches)
        data.setup("test")
        name = "test batches, used neither for training nor for scoring"
        return HeldOut("held-out text", name, (transferred(trainer, batch) for batch in data.test_dataloader()))

    def _speeds(self, model: PreTrainedModel) -> dict[str, Speed]:
        if not self.repeats:
            return {}
        return compare_speed(
            {"before": dense_twin(model), "after": model},
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            repeats=self.repeats,
        )

    def _require_order(self, trainer: L.Trainer) -> None:
        callbacks = loop.callbacks_of(trainer)
        if not any(isinstance(callback, SublayerPruneCallback) for callback in callbacks[: callbacks.index(self)]):
            raise LitPruneError("BeforeAfterCallback reports what SublayerPruneCallback does; add that one before it")

    @staticmethod
    def _pruning(trainer: L.Trainer) -> SublayerPruneCallback:
        callbacks = loop.callbacks_of(trainer)
        return next(callback for callback in callbacks if isinstance(callback, SublayerPruneCallback))


def _rows(before: dict[str, Any], after: dict[str, Any], held_out: HeldOut) -> list[Row]:
    return [
        Row("parameters", before["parameters"], after["parameters"]),
        Row(f"perplexity on {held_out.kind}", before["ppl"], after["ppl"]),
    ]


def _ratios(speeds: dict[str, Speed]) -> dict[str, float]:
    if not speeds:
        return {}
    return dict(zip(SPEEDS, speeds["after"].times_as_fast(speeds["before"]), strict=True))


def _speed_rows(speeds: dict[str, Speed]) -> list[Row]:
    if not speeds:
        return []
    dense, pruned = speeds["before"], speeds["after"]
    prompt = f"prefill of {dense.batch} x {dense.prompt_tokens} tokens ({dense.device}, {dense.dtype})"
    return [
        Row(prompt, 1e3 * dense.prefill_seconds, 1e3 * pruned.prefill_seconds, unit="ms", better="lower"),
        Row("decoding, per token", 1e3 * dense.decode_seconds_per_token, 1e3 * pruned.decode_seconds_per_token,
            unit="ms", better="lower"),
    ]  # fmt: skip
