"""`lit-prune heal`: trains a pruned model to get back what was lost, with the dense model as its teacher."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lit_prune.commands.arguments import call, model_names, still_free
from lit_prune.commands.lessons import Lessons, Teaching
from lit_prune.commands.options import Loading
from lit_prune.commands.outcomes import say_next
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.files import say
from lit_prune.plan import HealingReport, HealingSettings, LoraHealing, PrunePlan, manners_in_words

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

REQUESTS = 128
"""Requests whose answers are repaired, where that is wanted."""
LESSONS, TEACHING, LORA, TRAINING, LOADING = Lessons(), Teaching(), LoraHealing(rank=64), HealingSettings(), Loading()


def heal_model(
    models: str,
    *,
    output: str,
    lessons: Lessons = LESSONS,
    teaching: Teaching = TEACHING,
    lora: LoraHealing = LORA,
    training: HealingSettings = TRAINING,
    rates: list[float] | None = None,
    keep_adapter: bool = False,
    loading: Loading = LOADING,
) -> None:
    """Train low-rank updates of a pruned model, with the dense model or another as teacher, and save what came of it.

    Of several prunings of one model, or several learning rates, all are trained to the first validation, and the best
    half goes on, until one is left that is trained to the end: which is best before a healing says little of which is
    best after it, and what is a good rate differs by model.

    A training that was stopped, by Ctrl-C or by force, goes on from its last validation when the same command is given
    again; until then its state is in the folder OUTPUT.healing, and after Ctrl-C the best model so far in
    OUTPUT.healing/best.

    Validation comes from the same texts, in windows that are not trained on. The best state there is kept, the one
    before the first step included: by perplexity, and by how much more the model repeats itself than its teacher where
    both answer requests that are given or that the teacher wrote, or go on with beginnings of these windows where it
    does not chat. Adapters are trained in float32 whatever the dtype.

    Args:
        models: A folder that lit-prune wrote, with its prune_plan.json, or several, separated by commas.
        output: Folder for the healed model, or for the adapter; it must not exist, or be empty.
        lessons: What is trained on.
        teaching: Who teaches.
        lora: The adapters.
        training: How they are trained.
        rates: Learning rates to choose from, in place of that of `training`.
        keep_adapter: Write the adapter alone, as peft does, instead of a model with it merged.
        loading: How the models are loaded.
    """
    from lit_prune.data import calibration_batches, fingerprint, require_positive
    from lit_prune.export import require_empty, save
    from lit_prune.healing import Stay, heal, merge, merits_in, race, save_adapter

    target = require_empty(output)
    require_positive(window=lessons.window, val_windows=lessons.val_windows, batch_size=lessons.batch_size)
    if keep_adapter and (training.also or training.last_blocks):
        raise LitPruneError("an adapter holds no norms, head or blocks; leave keep_adapter, also or last_blocks out")
    teaching.require_possible(training)
    names = model_names(models)
    plans = {name: PrunePlan.load(name) for name in names}
    texts, dense = lessons.texts(taught=teaching.distill), teaching.of(plans)
    teaching.require_there(dense, texts, loading)
    # By what tells them apart: the pruning, and the rate where there are several.
    entrants = {
        f"{name} at {rate:g}" if rates else name: (name, replace(training, seed=lessons.seed, learning_rate=rate))
        for name in names
        for rate in rates or [training.learning_rate]
    }
    of = {**asdict(lessons), **asdict(teaching), "model": names, "data": texts, "tokens": training.tokens}
    of |= {"rates": rates} if rates else {}
    wanted = training.examined + (REQUESTS if training.repair else 0) if teaching.distill else 0
    of |= {"num_requests": wanted} if training.repair else {}
    stay = Stay(target.with_name(f"{target.name}.healing"), {**of, "dense": dense})
    tokenizer, writer = loading.tokenizer(names[0]), partial(teaching.model, dense, loading)
    teaching.require_tokens(tokenizer, loading)
    lessons.require_requests(training, tokenizer, taught=teaching.distill)
    drawn = stay.windows(lambda: lessons.windows(texts, tokenizer, training.tokens, writer, wanted))
    options: dict[str, Any] = {
        "lora": lora,
        "batch_size": lessons.batch_size,
        "prompts": drawn.get("requests"),
    }
    states = {entrant: stay.state(number) for number, entrant in enumerate(entrants)}

    def healed(entrant: str, pause: int | None = None) -> tuple[PreTrainedModel, HealingReport]:
        name, settings = entrants[entrant]
        network, teacher = teaching.student(writer, name, loading)
        asked = {**options, "settings": settings, "state": states[entrant], **_on(loading.place, network.dtype)}
        report = heal(network, drawn["train"], drawn["validation"], teacher=teacher, pause=pause, **asked)
        if report.stopped and pause is not None:
            _stop(target)
        return network, report

    def merit(entrant: str, pause: int) -> float:
        known = merits_in(states[entrant])
        return known[pause] if len(known) > pause else healed(entrant, pause)[1].merit

    if stay.state().exists():
        say(f"going on with the training in {stay.folder}")
    entrant, merits = race(list(entrants), merit)
    network, report = healed(entrant)
    best, training = entrants[entrant]
    if report.stopped:
        shutil.rmtree(place := stay.folder / "best", ignore_errors=True)
    else:
        place = still_free(target)
    if keep_adapter:
        save_adapter(network, place, base=best)
    else:
        merge(network)
        facts = {**asdict(report), "lora": asdict(lora), "training": asdict(training), "distilled": teaching.distill}
        facts |= {
            "answers_only": lessons.answers_only,
            "by_document": lessons.by_document,
            "requests": lessons.requests,
            "teacher": teaching.teacher,
            "race": merits,
        }
        facts |= {"data": texts, **fingerprint(calibration_batches(drawn["train"], lessons.batch_size))}
        # Beside the number of tokens in the data, that of training.
        facts["tokens"] = report.tokens
        save(network, place, tokenizer=tokenizer, plan=replace(plans[best], healing=facts))
    say("\n".join([*_raced(merits), outcome(report), f"written: {place}"]))
    if report.stopped:
        _stop(target)
    shutil.rmtree(stay.folder, ignore_errors=True)
    if place != target:
        raise ModelError(f"{target} exists, since this began; what was healed is kept as {place}")
    _say_next(str(place), dense, is_adapter=keep_adapter)


run = partial(call, heal_model, nested=["lora", "training"])


def _on(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What Lightning's Trainer is told of a device, and of the data type of the weights."""
    import torch

    # Adapters are float32, and multiplied in the type of the weights beside them: an eighth faster in all.
    mixed = {"precision": "bf16-mixed"} if dtype == torch.bfloat16 else {}
    if "cuda" not in device:
        return {"accelerator": "cpu", "devices": 1, **mixed}
    return {"accelerator": "gpu", "devices": [int(device.partition(":")[2] or 0)], **mixed}


def _raced(merits: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """What was found of several models behind the first validations, the one that went on first."""
    for name, found in sorted(merits.items(), key=lambda pair: (-len(pair[1]), pair[1][-1])):
        yield f"{name}: loss and repetition behind the first validations {', '.join(f'{each:.3f}' for each in found)}"


def _stop(target: Path) -> NoReturn:
    say(f"stopped; the same command goes on from here, and writes {target}", file=sys.stderr)
    sys.exit(130)


def outcome(report: HealingReport) -> str:
    """What a healing came to, for people."""
    trained = (
        f"{report.tokens:,} tokens in {report.seconds / 60:.1f} minutes, {report.num_trained:,} parameters trained"
    )
    if not report.helped:
        return f"{trained}\nit did not help: perplexity {report.ppl_before:.2f}; the model is as it was"
    best = f"after step {report.step} of {report.steps}"
    words = [trained, f"perplexity on validation windows: {report.ppl_before:.2f} -> {report.ppl_after:.2f}, {best}"]
    return "\n".join([*words, *(f"{name}: {shares}" for name, shares in manners_in_words(report.manners))])


def _say_next(place: str, dense: str, *, is_adapter: bool) -> None:
    against = ["--against", dense] if dense else []
    if not is_adapter:
        say_next(
            {
                "talk to it": ["chat", place, *against],
                "measure it": ["evaluate", place, *against],
                "write it for another runtime": ["export", place, "--format", "vllm", "--output", f"{place}-vllm"],
            }
        )
