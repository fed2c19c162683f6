"""`lit-prune bench`: what things cost, measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lit_prune.commands.arguments import call, default_device, require_writable
from lit_prune.commands.bench_scale import bench_scale
from lit_prune.commands.bench_speed import bench_speed
from lit_prune.data import calibration_batches, drawn_windows, require_positive
from lit_prune.errors import LitPruneError
from lit_prune.evaluation import SearchCost, compare_searches, measure_search_memory
from lit_prune.files import markdown_line, markdown_table, say, write_text
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.pruning import prune
from lit_prune.searches import require_share

HEADS = (
    "search",
    "block evaluations",
    "heads",
    "dense passes",
    "of the first",
    "tokens",
    "disturbed",
    "seconds",
    "removed",
    "ppl",
)


def run(verb: str, arguments: Sequence[str]) -> None:
    """The verb's entry."""
    if list(arguments[:1]) == ["speed"]:
        call(bench_speed, f"{verb} speed", arguments[1:], positionals=["models"])
    elif list(arguments[:1]) == ["scale"]:
        call(bench_scale, f"{verb} scale", arguments[1:], positionals=["shapes"])
    else:
        call(bench, verb, arguments, positionals=["what", "model"])


def bench(
    what: str,
    model: str,
    *,
    searches: list[str] | None = None,
    amount: float = 0.2,
    scorer: str = "nri",
    data: str = "builtin",
    window: int = 256,
    num_windows: int = 8,
    batch_size: int = 2,
    num_unseen: int = 24,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    offload: bool = False,
    output: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Compare what searches cost and what they find, or measure the memory that one takes, on one model and text.

    lit-prune bench speed --help tells of the comparison of models' speeds, lit-prune bench scale --help of models that
    are too large for this machine.

    Args:
        what: search, or memory: the peak while the first of `searches` is at work.
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        searches: Which ones, in this order; by default [naive, progressive, lazy, one_shot]. naive is progressive
            search by a full pass for every candidate.
        amount: Share of all parameters to remove, above 0 and below 1.
        scorer: nri, ri or ppl.
        data: Text as for prune; some windows are scored, others measure what was found.
        window: Tokens in a window.
        num_windows: Windows that the searches measure on.
        batch_size: Windows in a batch, the least that a search can screen on.
        num_unseen: Windows for the perplexity of the result, none of which a search sees.
        dtype: Of the weights: float32, bfloat16, float16 or auto.
        device: Such as cuda:0 or cpu; a GPU where there is one.
        seed: Decides which windows are drawn.
        offload: For memory: as for prune.
        output: Markdown file for the table.
        trust_remote_code: Run code that comes with the model.
    """
    if what not in ("search", "memory"):
        raise LitPruneError(f"bench knows search, memory, speed and scale; found {what!r}")
    require_writable(output)
    require_share(amount)
    require_positive(num_windows=num_windows, num_unseen=num_unseen, batch_size=batch_size)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    wanted = num_windows + (num_unseen if what == "search" else 0)
    drawn = drawn_windows(data, tokenizer, window=window, wanted=wanted, seed=seed)
    device = default_device(device)
    batches, unseen = (
        calibration_batches(part, batch_size) for part in (drawn[:num_windows], drawn[num_windows:wanted])
    )
    load_it = partial(load, model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if what == "memory":
        name = (searches or ["progressive"])[0]
        report = _memory(load_it(), batches, amount=amount, search=name, scorer=scorer, offload=offload)
        if output is not None:
            write_text(output, report)
        say(report)
        return
    costs: list[SearchCost] = []
    options: dict[str, Any] = {"searches": searches or ["naive", "progressive", "lazy", "one_shot"], "scorer": scorer}
    for cost in compare_searches(load_it, batches, unseen, amount=amount, **options):
        costs.append(cost)
        say(f"{cost.name}: {', '.join(cost.removed)}")
        if output is not None:
            write_text(output, table(costs))
    say(table(costs))


def _memory(network: Any, batches: Any, **options: Any) -> str:
    found = measure_search_memory(network, batches, lambda: prune(network, batches, **options))
    figures = {"model": found.model, "states of one sequence": found.states, "growth at the peak": found.growth}
    lines = [f"| {name} | {value / 1e6:,.1f} MB |" for name, value in figures.items()]
    share = f"| model and growth, of model and states | {found.share:.2f} |"
    return "\n".join(["| memory | |", "| --- | ---: |", *lines, share, ""])


def table(costs: Sequence[SearchCost]) -> str:
    """A Markdown table, and the order that each search found."""
    rows = [
        (
            each.name,
            f"{each.block_evaluations:,}",
            f"{each.head_evaluations:,}",
            f"{each.dense_passes:.1f}",
            f"{each.dense_passes / costs[0].dense_passes:.3f}",
            f"{each.tokens:,}",
            "" if each.num_disturbed is None else f"{each.num_disturbed} of {len(each.removed)}",
            f"{each.seconds:.0f}",
            f"{each.share_removed:.2%}",
            f"{each.ppl:.2f}",
        )
        for each in costs
    ]
    orders = [f"- {markdown_line(each.name)}: {', '.join(each.removed)}" for each in costs]
    return "\n".join([markdown_table(HEADS, rows), "", "Order of removal:", "", *orders, ""])
