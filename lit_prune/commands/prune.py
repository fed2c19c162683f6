"""`lit-prune prune`: a smaller model without training."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lit_prune.commands.arguments import call
from lit_prune.commands.launching import part, require_shared, shard_over, start
from lit_prune.data import calibration_batches, draw_windows, read_texts
from lit_prune.export import require_empty, save
from lit_prune.files import say
from lit_prune.loading.fsdp import whole_copy
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.loading.processes import processes_of_fabric
from lit_prune.plan import PLAN_FILE, PrunePlan, read_method
from lit_prune.pruning import Pruner, prune
from lit_prune.report import disturbance
from lit_prune.searches import outcome_in_words

JOURNAL_FILE = "search.jsonl"
DEFAULT_AMOUNT = 0.2


def prune_model(
    model: str,
    *,
    output: str,
    amount: float | None = None,
    of: str | dict[str, Any] = "params",
    max_rise: float | None = None,
    data: str = "builtin",
    data_name: str | None = None,
    data_split: str | None = None,
    data_field: str = "text",
    window: int = 512,
    num_windows: int = 32,
    batch_size: int = 8,
    method: str = "nri",
    scorer: str | dict[str, Any] | None = None,
    search: str | dict[str, Any] | None = None,
    granularity: Literal["sublayer", "attention", "mlp", "block"] | None = None,
    protect: list[str] | None = None,
    compensate: str | dict[str, Any] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    devices: int | None = None,
    device_map: str | dict[str, Any] | None = None,
    shard: bool = False,
    forks: int = 1,
    offload: bool = False,
    seed: int = 0,
    layout: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Remove the least important sublayers of a model and save it.

    Every measurement is written to OUTPUT.search.jsonl as it is made, and the plan so far to OUTPUT.prune_plan.json.
    A run that was stopped, by Ctrl-C or by force, goes on when the same command is given again.

    Args:
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        output: Folder for the pruned model; it must not exist, or be empty.
        amount: Share of the whole model to remove, above 0 and below 1; 0.2 where max_rise is not given either.
        of: What that is a share of: params, flops or kv_cache of a token after a calibration window, or latency, which
            is measured on this device; options as YAML, such as '{name: latency, phase: decode, batch: 1, length: 512}'
            (or phase: prefill).
        max_rise: The most by which perplexity on the calibration text may rise, such as 0.05 for 5 percent: what would
            rise above stays. With amount, whichever comes first.
        data: Calibration text: builtin (Python's help topics), a .txt, .jsonl, .json or
            .parquet file, a folder, or a hub data set.
        data_name: Configuration of a hub data set, such as wikitext-2-raw-v1.
        data_split: Split of a hub data set.
        data_field: Key of the text in JSON lines and hub data sets.
        window: Tokens in a calibration window.
        num_windows: Calibration windows, drawn from the text.
        batch_size: Windows in a batch.
        method: A method of the field by its name, such as blockpruner, sleb, shortgpt, llm-drop or evopress; the five
            options below are what it is made of, and change it where they are given.
        scorer: nri, or another of the table in the README; options as YAML, such as '{name: nri, baseline: original}'.
        search: progressive (score again in every round), lazy (only what may have become the best), one_shot,
            contiguous, evolutionary or refine; options as YAML.
        granularity: What goes at a time.
        protect: What must stay, such as '[attention.0, mlp.3, block.2, first, last]'.
        compensate: What makes up for each removal in weights that stay, at no cost at run time - none, scale (one
            factor), linear (a map fitted to what is lost) or bias (its mean); options as YAML.
        dtype: Of the weights: float32, bfloat16, float16 or auto.
        device: Such as cuda:0 or cpu; a GPU where there is one.
        devices: Processes that share the calibration windows, each with a device and a copy of the model of its own; by
            default as many as `fabric run` or torchrun has started, else one.
        shard: Share the weights among the processes too, for a model that no device holds: each keeps a part of every
            weight, and gathers a block's while it runs (FSDP2). All read the model into the CPU's memory first.
        device_map: For a model that no device holds, instead of device: auto spreads it over the GPUs, the CPU's memory
            and disk.
        forks: Candidates that share one pass through the blocks behind all of them: more work at a time for a GPU.
        offload: Spare the memory of a full device: states between blocks are kept in the CPU's, and the head runs on a
            few tokens at a time.
        seed: Decides which windows are drawn.
        layout: YAML or JSON file that describes blocks which are not understood: see docs/architectures.md.
        trust_remote_code: Run code that comes with the model.
    """
    if amount is None and max_rise is None:
        amount = DEFAULT_AMOUNT
    options = {"scorer": scorer, "search": search, "granularity": granularity, "protect": protect}
    options["compensate"] = compensate
    chosen = read_method(method).with_settings({name: value for name, value in options.items() if value is not None})
    Pruner.require_known(chosen)
    target = require_empty(output)
    # Beside the folder, which is not there before the end.
    journal, sketch = (target.with_name(f"{target.name}.{name}") for name in (JOURNAL_FILE, PLAN_FILE))
    fabric, device = start(devices, device, device_map)
    require_shared(fabric, shard=shard)
    processes = processes_of_fabric(fabric)
    if journal.exists() and processes.is_first:
        say(f"going on with the measurements in {journal}")
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    texts = read_texts(data, name=data_name, split=data_split, field=data_field)
    windows = draw_windows(texts, tokenizer, window=window, most=num_windows, seed=seed)
    if len(windows) < num_windows and processes.is_first:
        say(f"the text has {len(windows)} windows of {window} tokens, fewer than {num_windows}: all of them are used")
    placed: Any = {"device": None if shard else device, "device_map": device_map}
    network = load(model, dtype=dtype, **placed, layout=layout, trust_remote_code=trust_remote_code)
    if fabric is not None and shard:
        shard_over(network, fabric)
    try:
        plan = prune(
            network,
            calibration_batches(windows, batch_size),
            amount=amount,
            of=of,
            max_rise=max_rise,
            **chosen.options,
            model_name=model,
            calibration={"source": data, "window": window},
            journal=journal,
            on_step=lambda plan: plan.save(sketch),
            forks=forks,
            offload=offload,
            fabric=fabric,
        )
    except KeyboardInterrupt:
        decided = f", what was decided so far is in {sketch}" if sketch.exists() else ""
        if processes.is_first:
            say(f"\nstopped{decided}; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    whole: Any = whole_copy(network)
    processes.first(lambda: _finish(save(whole, output, tokenizer=tokenizer, plan=plan), journal, sketch))
    if processes.is_first:
        say(f"{_outcome(plan)}\nwritten: {target}")
    part()


run = partial(call, prune_model)


def _finish(folder: Path, journal: Path, sketch: Path) -> None:
    journal.replace(folder / JOURNAL_FILE)
    sketch.unlink(missing_ok=True)


def _outcome(plan: PrunePlan) -> str:
    before, gone = plan.model.num_parameters, plan.num_removed_parameters
    names = ", ".join(step.removed.name for step in plan.steps) or "nothing"
    parameters = f"parameters: {before:,} -> {before - gone:,} ({gone / before:.1%} less)"
    searched = [] if plan.num_disturbed is None else [disturbance(plan)]
    return "\n".join([f"removed {names}", parameters, *outcome_in_words(plan.budget), *searched])
