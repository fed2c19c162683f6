"""`lit-prune heal`: trains a pruned model to get back what was lost, with the dense model as its teacher."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from lit_prune.commands.arguments import call, still_free
from lit_prune.commands.options import SELF, Loading, self_written
from lit_prune.data import calibration_batches, drawn_windows, fingerprint, require_positive
from lit_prune.errors import DataError, LitPruneError, ModelError
from lit_prune.export import require_empty, save
from lit_prune.files import say
from lit_prune.healing import (
    DenseTeacher,
    HealingReport,
    HealingSettings,
    LoraHealing,
    Stay,
    heal,
    merge,
    save_adapter,
)
from lit_prune.plan import PrunePlan

LORA, TRAINING, LOADING = LoraHealing(rank=64), HealingSettings(), Loading()


def heal_model(
    model: str,
    *,
    output: str,
    data: list[str] | None = None,
    window: int = 256,
    val_windows: int = 32,
    batch_size: int = 2,
    lora: LoraHealing = LORA,
    training: HealingSettings = TRAINING,
    distill: bool = True,
    dense: str | None = None,
    keep_adapter: bool = False,
    seed: int = 0,
    loading: Loading = LOADING,
) -> None:
    """Train low-rank updates of a pruned model, with the dense model as teacher, and save what came of it.

    A training that was stopped, by Ctrl-C or by force, goes on from its last validation when the same command is given
    again; until then its state is in the folder OUTPUT.healing, and after Ctrl-C the best model so far in
    OUTPUT.healing/best.

    Validation comes from the same texts, in windows that are not trained on. The state with the best perplexity there
    is kept, the one before the first step included. Adapters are trained in float32 whatever the dtype.

    Args:
        model: A folder that lit-prune wrote, with its prune_plan.json.
        output: Folder for the healed model, or for the adapter; it must not exist, or be empty.
        data: Texts to train on, in equal shares - builtin, files as for prune, folders, hub data sets, or self for
            text that the dense model writes, half of it dialogues where it has a chat template; by default builtin,
            and self where the dense model teaches.
        window: Tokens in a window.
        val_windows: Windows for validation.
        batch_size: Windows in a batch.
        lora: The adapters.
        training: How they are trained.
        distill: Learn the dense model's distribution; without, the text itself.
        dense: The dense model; by default the one that the plan names, whose code is not run.
        keep_adapter: Write the adapter alone, as peft does, instead of a model with it merged.
        seed: Decides which windows are drawn, and their order.
        loading: How the models are loaded.
    """
    target = require_empty(output)
    stay_in = target.with_name(f"{target.name}.healing")
    require_positive(window=window, val_windows=val_windows, batch_size=batch_size)
    texts = data or (["builtin", SELF] if distill else ["builtin"])
    if keep_adapter and (training.also or training.last_blocks):
        raise LitPruneError("an adapter holds no norms, head or blocks; leave keep_adapter, also or last_blocks out")
    plan = PrunePlan.load(model)
    device = loading.place
    tokenizer = loading.tokenizer(model)
    share = -(-val_windows // len(texts))
    wanted = share + -(-training.tokens // (window * len(texts)))
    drawn = {"model": str(model), "dense": dense or plan.model.name, "data": texts, "window": window, "seed": seed}
    stay = Stay(stay_in, {**drawn, "val_windows": val_windows, "tokens": training.tokens})
    windows = {
        text: drawn_windows(text, tokenizer, window=window, wanted=share + 1, most=wanted, seed=seed)
        for text in ([] if stay.is_begun else texts)
        if text != SELF
    }
    network = loading.model(model)
    teacher = None
    if distill or SELF in texts:
        origin = _dense_model(dense, plan.model.name, loading)
        if SELF in texts and not stay.is_begun:
            windows[SELF] = self_written(origin, tokenizer, wanted, window, seed)
        if distill:
            teacher = DenseTeacher.of_pruned(origin, network)
            network = teacher.student
    train, validation = stay.windows(
        lambda: (torch.cat([w[share:] for w in windows.values()]), torch.cat([w[:share] for w in windows.values()]))
    )
    if stay.state.exists():
        say(f"going on with the training in {stay.folder}")
    report = heal(
        network,
        train,
        validation,
        lora=lora,
        settings=replace(training, seed=seed),
        teacher=teacher,
        batch_size=batch_size,
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
        healed = {**asdict(report), "lora": asdict(lora), "training": asdict(training), "distilled": distill}
        healed |= {"data": texts, **fingerprint(calibration_batches(train, batch_size))}
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
    return f"{trained}\nperplexity on validation windows: {report.ppl_before:.2f} -> {report.ppl_after:.2f}, {best}"


def _dense_model(given: str | None, planned: str, loading: Loading) -> PreTrainedModel:
    name = given or planned
    if not name:
        raise DataError("the plan does not name the dense model; give it as --dense, or leave --distill false")
    # Code that came with a model is trusted by its name from the user, not from a plan.
    trusted = loading.trust_remote_code and given is not None
    try:
        return replace(loading, trust_remote_code=trusted).model(name)
    except ModelError as error:
        raise ModelError(f"the dense model that teaches: {error}; give it as --dense, or --distill false") from error
