"""`lit-prune heal`: trains a pruned model to get back what was lost, with the dense model as its teacher."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.commands.arguments import call, still_free
from lit_prune.commands.options import SELF, Loading, self_written
from lit_prune.data import calibration_batches, drawn_windows, fingerprint, require_answers, require_positive
from lit_prune.errors import DataError, LitPruneError, ModelError
from lit_prune.export import require_empty, save
from lit_prune.files import say
from lit_prune.healing import (
    DenseTeacher,
    HealingReport,
    HealingSettings,
    LoraHealing,
    OtherTeacher,
    Stay,
    Teacher,
    heal,
    merge,
    save_adapter,
)
from lit_prune.plan import PrunePlan


@dataclass(frozen=True)
class Lessons:
    """What is trained on.

    Attributes:
        data: Texts to train on, in equal shares - builtin, files as for prune, folders, hub data sets, of texts or of
            dialogues, or self for text that the teacher writes, half of it dialogues where it has a chat template; by
            default builtin, and self where a model teaches.
        window: Tokens in a window.
        val_windows: Windows for validation.
        batch_size: Windows in a batch.
        answers_only: Of dialogues learn only what the assistant says; of a text all is learned.
        seed: Decides which windows are drawn, and their order.
    """

    data: list[str] | None = None
    window: int = 256
    val_windows: int = 32
    batch_size: int = 2
    answers_only: bool = False
    seed: int = 0

    def texts(self, *, taught: bool) -> list[str]:
        """The texts by name."""
        return self.data or (["builtin", SELF] if taught else ["builtin"])

    def windows(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        tokens: int,
        writer: Callable[[], PreTrainedModel],
    ) -> tuple[Tensor, Tensor]:
        """Draw the windows for so many training tokens, and those for validation; `self` is what a model writes."""
        share = -(-self.val_windows // len(texts))
        wanted = share + -(-tokens // (self.window * len(texts)))
        draw = partial(
            drawn_windows,
            window=self.window,
            wanted=share + 1,
            most=wanted,
            seed=self.seed,
            answers_only=self.answers_only,
        )
        drawn = {text: draw(text, tokenizer) for text in texts if text != SELF}
        if self.answers_only:
            require_answers(torch.cat([*drawn.values(), torch.zeros(0, self.window)]))
        if SELF in texts:
            drawn[SELF] = self_written(writer(), tokenizer, wanted, self.window, self.seed)
        windows = [drawn[text] for text in drawn]
        return torch.cat([rows[share:] for rows in windows]), torch.cat([rows[:share] for rows in windows])


@dataclass(frozen=True)
class Teaching:
    """Who teaches.

    Attributes:
        distill: Learn the teacher's distribution; without, the text itself.
        dense: The dense model, which teaches; by default the one that the plan names, whose code is not run.
        teacher: Another model that teaches instead, with the same tokens: one that was trained further, or a larger
            one. It takes its own memory, where the dense model is held inside the pruned one.
    """

    distill: bool = True
    dense: str | None = None
    teacher: str | None = None

    def require_possible(self, training: HealingSettings) -> None:
        """Refuse two teachers, and what another teacher cannot teach."""
        if self.teacher is not None and (self.dense is not None or training.hidden):
            raise LitPruneError(
                "another teacher takes the dense model's place, and its hidden states are its own; leave dense and "
                "training.hidden out"
            )

    def model(self, planned: str, loading: Loading) -> PreTrainedModel:
        """Load the model that teaches, and writes where text is wanted; the plan names the dense one."""
        if self.teacher is not None:
            return loading.model(self.teacher)
        name = self.dense or planned
        if not name:
            raise DataError("the plan does not name the dense model; give it as --dense, or leave --distill false")
        # Code that came with a model is trusted by its name from the user, not from a plan.
        trusted = loading.trust_remote_code and self.dense is not None
        try:
            return replace(loading, trust_remote_code=trusted).model(name)
        except ModelError as error:
            raise ModelError(
                f"the dense model that teaches: {error}; give it as --dense, or --distill false"
            ) from error

    def teaches(self, model: PreTrainedModel, student: PreTrainedModel, loading: Loading, of: str) -> Teacher:
        """Let the model teach a student that was loaded `of` a folder; the student learns as `teacher.student`."""
        if self.teacher is None:
            return DenseTeacher.of_pruned(model, student)
        tokens = loading.tokenizer(self.teacher).get_vocab(), loading.tokenizer(of).get_vocab()
        return OtherTeacher(model, student, tokens)


LESSONS, TEACHING, LORA, TRAINING, LOADING = Lessons(), Teaching(), LoraHealing(rank=64), HealingSettings(), Loading()


def heal_model(
    model: str,
    *,
    output: str,
    lessons: Lessons = LESSONS,
    teaching: Teaching = TEACHING,
    lora: LoraHealing = LORA,
    training: HealingSettings = TRAINING,
    keep_adapter: bool = False,
    loading: Loading = LOADING,
) -> None:
    """Train low-rank updates of a pruned model, with the dense model or another as teacher, and save what came of it.

    A training that was stopped, by Ctrl-C or by force, goes on from its last validation when the same command is given
    again; until then its state is in the folder OUTPUT.healing, and after Ctrl-C the best model so far in
    OUTPUT.healing/best.

    Validation comes from the same texts, in windows that are not trained on. The state with the best perplexity there
    is kept, the one before the first step included. Adapters are trained in float32 whatever the dtype.

    Args:
        model: A folder that lit-prune wrote, with its prune_plan.json.
        output: Folder for the healed model, or for the adapter; it must not exist, or be empty.
        lessons: What is trained on.
        teaching: Who teaches.
        lora: The adapters.
        training: How they are trained.
        keep_adapter: Write the adapter alone, as peft does, instead of a model with it merged.
        loading: How the models are loaded.
    """
    target = require_empty(output)
    require_positive(window=lessons.window, val_windows=lessons.val_windows, batch_size=lessons.batch_size)
    if keep_adapter and (training.also or training.last_blocks):
        raise LitPruneError("an adapter holds no norms, head or blocks; leave keep_adapter, also or last_blocks out")
    teaching.require_possible(training)
    texts = lessons.texts(taught=teaching.distill)
    plan = PrunePlan.load(model)
    of = {**asdict(lessons), **asdict(teaching), "model": str(model), "data": texts, "tokens": training.tokens}
    stay = Stay(target.with_name(f"{target.name}.healing"), {**of, "dense": teaching.dense or plan.model.name})
    tokenizer = loading.tokenizer(model)
    writer = cache(partial(teaching.model, plan.model.name, loading))
    train, validation = stay.windows(lambda: lessons.windows(texts, tokenizer, training.tokens, writer))
    network, teacher = loading.model(model), None
    loading.hint_at_speed(network)
    if teaching.distill:
        teacher = teaching.teaches(writer(), network, loading, model)
        network = teacher.student
    writer.cache_clear()
    if stay.state.exists():
        say(f"going on with the training in {stay.folder}")
    device = loading.place
    report = heal(
        network,
        train,
        validation,
        lora=lora,
        settings=replace(training, seed=lessons.seed),
        teacher=teacher,
        batch_size=lessons.batch_size,
        state=stay.state,
        accelerator="gpu" if "cuda" in device else "cpu",
        devices=[int(device.partition(":")[2] or 0)] if "cuda" in device else 1,
    )
    if report.stopped:
        shutil.rmtree(place := stay.folder / "best", ignore_errors=True)
    else:
        place = still_free(target)
    if keep_adapter:
        save_adapter(network, place, base=model)
    else:
        merge(network)
        healed = {**asdict(report), "lora": asdict(lora), "training": asdict(training), "distilled": teaching.distill}
        healed |= {"answers_only": lessons.answers_only, "teacher": teaching.teacher}
        healed |= {"data": texts, **fingerprint(calibration_batches(train, lessons.batch_size))}
        # Beside the number of tokens in the data, that of training.
        healed["tokens"] = report.tokens
        save(network, place, tokenizer=tokenizer, plan=replace(plan, healing=healed))
    say(f"{outcome(report)}\nwritten: {place}")
    if report.stopped:
        say(f"stopped; the same command goes on from here, and writes {target}", file=sys.stderr)
        sys.exit(130)
    shutil.rmtree(stay.folder, ignore_errors=True)
    if place != target:
        raise ModelError(f"{target} exists, since this began; what was healed is kept as {place}")


run = partial(call, heal_model, nested=["lora", "training"])


def outcome(report: HealingReport) -> str:
    """What a healing came to, for people."""
    trained = (
        f"{report.tokens:,} tokens in {report.seconds / 60:.1f} minutes, {report.num_trained:,} parameters trained"
    )
    if not report.helped:
        return f"{trained}\nit did not help: perplexity {report.ppl_before:.2f}; the model is as it was"
    best = f"after step {report.step} of {report.steps}"
    words = [trained, f"perplexity on validation windows: {report.ppl_before:.2f} -> {report.ppl_after:.2f}, {best}"]
    return "\n".join([*words, *manners_in_words(report)])


def manners_in_words(report: HealingReport) -> Iterator[str]:
    """How the model goes on with text, before and after, beside its teacher."""
    names = {"repetition": "repeated 4-grams", "ended": "texts ended", "agreement": "same next token as the teacher"}
    for figure, name in names.items():
        found = {when: seen[figure] for when, seen in report.manners.items() if seen[figure] is not None}
        if "before" in found and "after" in found:
            teachers = f" (teacher {found['teacher']:.0%})" if "teacher" in found and figure != "agreement" else ""
            yield f"{name}: {found['before']:.0%} -> {found['after']:.0%}{teachers}"
