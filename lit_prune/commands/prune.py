"""`lit-prune prune`: a smaller model without training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

from lit_prune.commands.arguments import call
from lit_prune.commands.compare import compare
from lit_prune.commands.options import Loading, Mixture, Sample
from lit_prune.commands.outcomes import perplexity_in_words, removed_in_words, say_next, what_next
from lit_prune.errors import LitPruneError
from lit_prune.files import say
from lit_prune.plan import PLAN_FILE, Method, create, read_method, with_defaults
from lit_prune.searches import SEARCHES, Goal, Search

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from torch import Tensor

JOURNAL_FILE = "search.jsonl"
DEFAULT_AMOUNT = 0.2
DEFAULT_METHOD = "nri-portfolio"


@dataclass(frozen=True)
class Choice:
    """What decides which sublayers go.

    Attributes:
        method: A method of the field by its name, such as nri, blockpruner, sleb, shortgpt, llm-drop or evopress; the
            five options below are what it is made of, and change it where they are given. By default nri-portfolio;
            nri where a scorer or a search is given; nri-lazy where whole sets cannot be compared: with amounts,
            max_rise or draws, and on one window.
        scorer: nri, or another of those on the reference page of scorers; options as YAML, such as
            '{name: nri, baseline: original}'.
        search: progressive (score again in every round), lazy (only what may have become the best), one_shot,
            contiguous, evolutionary, refine, draws or portfolio (whole sets, judged on text that chose none of them);
            options as YAML.
        granularity: What goes at a time.
        protect: What must stay, such as '[attention.0, mlp.3, block.2, first, last]'.
        compensate: What makes up for removals in weights that stay, at no cost at run time - none, refit (at the end,
            every output projection behind the first removal, solved towards the dense model), or for each removal
            scale (one factor), linear (a map fitted to what is lost) or bias (its mean); options as YAML.
        draws: Number of times that the search is made, each time on num_windows windows of its own. The set that is
            best on further windows is taken, and the plan says how many of the draws chose each sublayer.
    """

    method: str | None = None
    scorer: str | dict[str, Any] | None = None
    search: str | dict[str, Any] | None = None
    granularity: Literal["sublayer", "attention", "mlp", "block"] | None = None
    protect: list[str] | None = None
    compensate: str | dict[str, Any] | None = None
    draws: int = 1

    @property
    def recipe(self) -> Method:
        """The method with what is changed of it."""
        from lit_prune.pruning import Pruner

        recipe = read_method(self.method or DEFAULT_METHOD).with_settings(self._changes)
        if self.draws > 1:
            recipe = replace(recipe, search={"name": "draws", "of": recipe.search, "number": self.draws})
        Pruner.require_known(recipe)
        return recipe

    def settled(self, *, whole: bool) -> Choice:
        """The same with its method named; `whole` says whether whole sets can be compared."""
        usual = DEFAULT_METHOD if whole and self.draws == 1 else "nri-lazy"
        return replace(self, method=self.method or (usual if self.scorer is self.search is None else "nri"))

    @property
    def as_line(self) -> dict[str, Any]:
        """The same as a line of a comparison."""
        if self.draws > 1:
            raise LitPruneError("amounts measures sizes of one search; leave draws out, or compare with --draws")
        return {"method": self.method, **self._changes}

    @property
    def _changes(self) -> dict[str, Any]:
        own = ("method", "draws")
        return {name: value for name, value in vars(self).items() if name not in own and value is not None}


@dataclass(frozen=True)
class Machine:
    """How the search is spread over devices and memory.

    Attributes:
        devices: Processes that share the calibration windows, each with a device and a copy of the model of its own; by
            default as many as `fabric run` or torchrun has started, else one.
        shard: Share the weights among the processes too, for a model that no device holds: each keeps a part of every
            weight, and gathers a block's while it runs (FSDP2). All read the model into the CPU's memory first.
        device_map: For a model that no device holds, instead of device: auto spreads it over the GPUs, the CPU's memory
            and disk.
        forks: Candidates that share one pass through the blocks behind all of them: more work at a time for a GPU.
        offload: Spare the memory of a full device: states between blocks are kept in the CPU's, and the head runs on a
            few tokens at a time.
    """

    devices: int | None = None
    shard: bool = False
    device_map: str | dict[str, Any] | None = None
    forks: int = 1
    offload: bool = False


GOAL, CHOICE, SAMPLE = Goal(), Choice(), Sample(window=512, num_windows=32, batch_size=4)
MACHINE, LOADING, REFIT = Machine(), Loading(), Mixture()


def prune_model(
    model: str,
    *,
    output: str,
    goal: Goal = GOAL,
    amounts: list[float] | None = None,
    choice: Choice = CHOICE,
    sample: Sample = SAMPLE,
    num_unseen: int = 8,
    refit: Mixture = REFIT,
    data_name: str | None = None,
    data_split: str | None = None,
    data_field: str = "text",
    machine: Machine = MACHINE,
    loading: Loading = LOADING,
    layout: str | None = None,
) -> None:
    """Remove the least important sublayers of a model and save it.

    Every measurement is written to OUTPUT.search.jsonl as it is made, and the plan so far to OUTPUT.prune_plan.json.
    A run that was stopped, by Ctrl-C or by force, goes on when the same command is given again.

    Args:
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        output: Folder for the pruned model; it must not exist, or be empty.
        goal: How much goes.
        amounts: Shares of the parameters, such as 0.05,0.1,0.15,0.2: measure what each costs instead of saving one.
            OUTPUT then holds the curve as table, JSON lines and picture, and the plan of each, for apply.
        choice: What decides which sublayers go.
        sample: The calibration text.
        num_unseen: Windows of every text, of documents that no other window is of, that tell how much worse the model
            gets; nothing is decided by them.
        refit: The text that refit solves for, many times what a search can look at.
        data_name: Configuration of a hub data set, such as wikitext-2-raw-v1.
        data_split: Split of a hub data set.
        data_field: Key of the text in JSON lines and hub data sets.
        machine: What the search runs on.
        loading: How the model is loaded.
        layout: YAML or JSON file that describes blocks which are not understood; the reference page of architectures
            has its fields.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import PreTrainedModel

    from lit_prune.commands.launching import part, require_shared, start
    from lit_prune.data import calibration_batches, read_texts
    from lit_prune.export import require_empty, save
    from lit_prune.healing import create_compensation, wants_dense
    from lit_prune.loading.fsdp import shard, whole_copy
    from lit_prune.loading.models import load
    from lit_prune.loading.processes import processes_of_fabric
    from lit_prune.pruning import prune
    from lit_prune.report import draws_in_words, made_up_for

    choice = choice.settled(whole=amounts is None and goal.max_rise is None and sample.num_windows > 1)
    recipe = choice.recipe
    if amounts is not None:
        _require_plain(goal, machine, data_name, data_split, data_field, layout)
        lines: list[str | dict[str, Any]] = [choice.as_line]
        compare(
            model,
            output=output,
            methods=lines,
            amounts=amounts,
            sample=sample,
            refit=refit,
            num_unseen=num_unseen,
            speed={"prompt_tokens": min(128, sample.window), "new_tokens": min(32, sample.window)},
            loading=loading,
        )
        return
    target = require_empty(output)
    if data_name is None and data_split is None and data_field == "text":  # the search's text, read as by default
        refit = refit.beside(sample.texts)
    refit.require_possible()
    refits = wants_dense(create_compensation(recipe.compensate))
    # Beside the folder, which is not there before the end.
    journal, sketch = (target.with_name(f"{target.name}.{name}") for name in (JOURNAL_FILE, PLAN_FILE))
    fabric, device = start(machine.devices, loading.device, machine.device_map)
    require_shared(fabric, shard=machine.shard)
    processes = processes_of_fabric(fabric)
    if journal.exists() and processes.is_first:
        say(f"going on with the measurements in {journal}")
    tokenizer = loading.tokenizer(model)
    search = with_defaults(Search, create(SEARCHES, recipe.search))
    read = partial(read_texts, name=data_name, split=data_split, field=data_field)
    sample, windows, unseen = _drawn(sample, tokenizer, search, draws=choice.draws, num_unseen=num_unseen, read=read)
    if processes.is_first:
        _say_what_lacks(sample, len(windows), lacks_unseen=num_unseen > 0 and len(unseen) < len(sample.texts))
    network = load(
        model,
        dtype=loading.dtype,
        device=None if machine.shard else device,
        device_map=machine.device_map,
        layout=layout,
        trust_remote_code=loading.trust_remote_code,
    )
    if fabric is not None and machine.shard:
        shard(network, init_device_mesh(fabric.device.type, (fabric.world_size,)))
    text = refit.batches(tokenizer, network.config, lambda: network) if refits else None
    try:
        plan = prune(
            network,
            calibration_batches(windows, sample.batch_size),
            amount=goal.amount if goal.is_stated else DEFAULT_AMOUNT,
            of=goal.of,
            max_rise=goal.max_rise,
            **recipe.options,
            compensate_on=text,
            unseen={name: calibration_batches(rows, sample.batch_size) for name, rows in unseen.items()},
            model_name=model,
            calibration=sample.recorded,
            journal=journal,
            on_step=lambda plan: plan.save(sketch),
            forks=machine.forks,
            offload=machine.offload,
            fabric=fabric,
        )
    except KeyboardInterrupt:
        decided = f", what was decided so far is in {sketch}" if sketch.exists() else ""
        if processes.is_first:
            say(f"\nstopped{decided}; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    whole = cast(PreTrainedModel, whole_copy(network))  # of a sharded model on process 0 alone, which saves it
    processes.first(lambda: _finish(save(whole, output, tokenizer=tokenizer, plan=plan), journal, sketch))
    if processes.is_first:
        mended = [*filter(None, [draws_in_words(plan)]), *([made_up_for(plan)] if plan.compensation else [])]
        say("\n".join([*removed_in_words(plan), *mended, *perplexity_in_words(plan), f"written: {target}"]))
        say_next(what_next(output, model))
    part()


run = partial(call, prune_model, nested=["refit"])


def _drawn(
    sample: Sample, tokenizer: Any, search: Search, *, draws: int, num_unseen: int, read: Callable[..., Any]
) -> tuple[Sample, Tensor, dict[str, Tensor]]:
    """The sample as the search wants it, its windows, and those that nothing goes by."""
    judges = draws == 1 and search.num_held_out(2) > 0

    def in_batches(num_windows: int) -> Sample:
        # Of few windows four batches, of which one judges.
        return replace(sample, batch_size=max(1, min(sample.batch_size, num_windows // 4))) if judges else sample

    sample = in_batches(sample.num_windows)
    num_batches = -(-sample.num_windows // sample.batch_size)
    if draws > 1:
        wanted = draws * num_batches
        num_batches = next(number for number in count(wanted) if number - search.num_held_out(number) >= wanted)
        sample = replace(sample, num_windows=num_batches * sample.batch_size)
    num_searching = num_batches - search.num_held_out(num_batches)
    num_judging = max(0, sample.num_windows - num_searching * sample.batch_size)
    windows, unseen = sample.apart(tokenizer, num_judging=num_judging, num_unseen=num_unseen, read=read)
    return in_batches(len(windows)), windows, unseen


def _say_what_lacks(sample: Sample, found: int, *, lacks_unseen: bool) -> None:
    if found < sample.num_windows:
        has = f"{sample.source} has {found} windows of {sample.window} tokens"
        say(f"{has}, fewer than {sample.num_windows}: all of them are used")
    if lacks_unseen:
        say("a text has no windows left to tell how much worse the model gets on it; give more text, or fewer windows")


def _require_plain(goal: Goal, machine: Machine, *reading: str | None) -> None:
    """Refuse, with amounts, what a comparison does not take."""
    if goal != GOAL:
        raise LitPruneError("amounts are shares of the parameters, instead of amount, of and max_rise")
    if machine != MACHINE or reading != (None, None, "text", None):
        raise LitPruneError(
            "amounts goes with text as it is read by default, in one process on one device: without data_name, "
            "data_split, data_field, layout, devices, shard, device_map, forks and offload"
        )


def _finish(folder: Path, journal: Path, sketch: Path) -> None:
    journal.replace(folder / JOURNAL_FILE)
    sketch.unlink(missing_ok=True)
