"""`lit-prune bench draft`, and drafts in `bench speed`: what a pruned model is worth as the draft of the dense one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lit_prune.commands.arguments import require_writable
from lit_prune.commands.options import Loading, Sample
from lit_prune.errors import LitPruneError
from lit_prune.files import Markdown, markdown_table, say

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_prune.evaluation import Drafting, Forecast

LOADING, SAMPLE = Loading(), Sample(data="mixed", num_windows=16, seed=1)
FORECAST_HEADS = ("removals", "parameters", "acceptance", "draft step", "tokens at a time", "speed-up", "ideal")
DRAFT_HEADS = ("draft", "tokens/s", "times as fast", "acceptance", "tokens a pass")


@dataclass(frozen=True)
class Drafts:
    """Drafts for one model, by speculative decoding.

    Attributes:
        draft: Drafts: a prune_plan.json, whose removals share the model's weights, or a pruned model with its own.
        draft_tokens: Tokens drafted at a time; 0 leaves it to transformers' own rule.
        data: The text of the prompts for drafts, as for prune.
    """

    draft: list[str] | None = None
    draft_tokens: int = 5
    data: list[str] | str = "mixed"

    def tables(
        self, model: str, lengths: Sequence[int], loading: Loading, *, new_tokens: int, repeats: int, warmup: int
    ) -> Iterator[str]:
        """Measure a model alone and with the drafts, on prompts of each length; one table for each."""
        from lit_prune.evaluation import compare_drafts

        names = self._names()
        network, tokenizer = loading.model(model), loading.tokenizer(model)
        drafts = {name: _draft(name, network, self.draft_tokens, loading) for name in names}
        for length in lengths:
            sample = replace(SAMPLE, data=self.data, window=length, num_windows=repeats)
            prompts = sample.windows(tokenizer)
            alone, found = compare_drafts(network, drafts, prompts, new_tokens=new_tokens, warmup=warmup)
            at_a_time = f"{self.draft_tokens} drafted at a time" if self.draft_tokens else "drafted by the draft's rule"
            place = place_in_words(network.device.type, str(network.dtype).removeprefix("torch."))
            conditions = (
                f"{repeats} prompts of {length} tokens of {sample.source}, {new_tokens} tokens written behind each, "
                f"reading included, {at_a_time}; {place}. In brackets 95 % intervals of the median ratio."
            )
            yield draft_table(alone, found, conditions)

    def _names(self) -> list[str]:
        """The drafts, which are looked for before anything is loaded."""
        from lit_prune.loading.models import require_model

        names = self.draft or []
        if not names or len(set(names)) < len(names):
            raise LitPruneError(f"draft names plans or pruned models, each once; found {', '.join(names) or 'none'}")
        for name in names:
            if not _is_plan(name):
                require_model(name)
        return names


def place_in_words(device: str, dtype: str) -> str:
    """Where and in which type was measured, with the threads of a CPU."""
    import torch

    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return f"{device}{threads}, {dtype}"


def bench_draft(
    model: str,
    plan: str,
    *,
    agreement: Literal["greedy", "sampling"] = "greedy",
    sample: Sample = SAMPLE,
    loading: Loading = LOADING,
    output: str | None = None,
) -> None:
    """Predict how much faster a model writes with the first removals of a plan as its draft, for every number of them.

    Acceptance is measured on text, the times of steps and passes on this device.

    Args:
        model: The unpruned model: a hub name, a folder, a GGUF file, or package:NAME.
        plan: A prune_plan.json, or a folder that holds one.
        agreement: A drafted token is accepted where it is the likeliest one of both models (greedy), or by chance as
            text is drawn (sampling).
        sample: The text, best other than that of the search.
        loading: How the model is loaded.
        output: File for the plan of the best draft, for bench speed --draft and lit_prune.speculative.
    """
    from lit_prune.data import calibration_batches
    from lit_prune.evaluation import forecasts
    from lit_prune.plan import PrunePlan
    from lit_prune.pruning import front_of, progress_bar

    require_writable(output)
    sample.require_possible()
    found = PrunePlan.load(plan)
    network, windows = loading.model(model), sample.windows(loading.tokenizer(model))
    with progress_bar("accepting", in_one=True) as bar:
        batches = calibration_batches(windows, sample.batch_size)
        rows = forecasts(found, network, batches, agreement=agreement, progress=bar)
    best = max(rows, key=lambda row: row.speedup)
    say(forecast_table(rows, best))
    if best.speedup <= 1:
        say("no draft of this plan is expected to make this model faster here")
    if output is not None:
        front_of(found, network, num_steps=best.num_steps).save(output)
        say(f"written: {output}\nnext: lit-prune bench speed {model} --draft {output} --draft_tokens {best.num_tokens}")


def forecast_table(rows: Sequence[Forecast], best: Forecast) -> str:
    """What is predicted of each size, as a Markdown table, the best in bold."""
    lines = []
    for row in rows:
        cells = (
            str(row.num_steps),
            f"-{row.share:.1%}",
            f"{row.acceptance:.3f}",
            f"{row.draft_time:.3f}",
            str(row.num_tokens),
            f"{row.speedup:.3f}",
            f"{row.ideal:.3f}",
        )
        lines.append(tuple(Markdown(f"**{cell}**") for cell in cells) if row is best else cells)
    note = (
        "Draft step: its time by that of a step of the model. Speed-up: with the measured time of a pass over so many "
        "tokens; ideal: where that is the time of a pass over one."
    )
    return f"{markdown_table(FORECAST_HEADS, lines)}\n\n{note}\n"


def draft_table(alone: Drafting, drafts: Mapping[str, Drafting], conditions: str) -> str:
    """Tokens a second alone and with drafts, and what was accepted, as a Markdown table."""
    lines = [("none", f"{alone.tokens_per_second:.1f}", "", "", "1.00")]
    lines += [
        (
            name,
            f"{found.tokens_per_second:.1f}",
            str(found.times_as_fast(alone)),
            f"{found.acceptance:.3f}",
            f"{found.tokens_per_pass:.2f}",
        )
        for name, found in drafts.items()
    ]
    ties = {name: found.ties for name, found in drafts.items() if found.ties}
    same = "The greedy text is the same with and without draft"
    told = ", but for " + ", ".join(f"{number} with {name}" for name, number in ties.items()) if ties else ""
    rounding = ", of all texts: there they part at two tokens whose logits rounding does not tell apart" if ties else ""
    return f"{markdown_table(DRAFT_HEADS, lines)}\n\n{conditions} {same}{told}{rounding}.\n"


def _draft(name: str, model: PreTrainedModel, num_tokens: int, loading: Loading) -> PreTrainedModel:
    """A plan's removals over the model's own weights, or another model with its own."""
    from lit_prune.pruning import set_draft_length, speculative

    if _is_plan(name):
        return speculative(model, Path(name).expanduser(), num_tokens=num_tokens or None)
    draft = loading.model(name)
    if num_tokens:
        set_draft_length(draft, num_tokens)
    return draft


def _is_plan(name: str) -> bool:
    return name.endswith(".json") and Path(name).expanduser().is_file()
