"""`python -m benchmarks.scale SHAPES`: searches simulated on shapes, and predictions beside what was measured."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import run
from benchmarks.block_timing import Timing, measure_block
from benchmarks.memory import measure_search_memory
from benchmarks.simulator import blank_batches, simulate
from lit_prune.commands.arguments import default_device, model_names, require_writable
from lit_prune.commands.bench_scale import LEFT, RATES, SETTING, Rates, Setting, estimate_tables
from lit_prune.data import calibration_batches, drawn_windows, require_positive
from lit_prune.errors import MeasureError
from lit_prune.evaluation import MODES, SearchWork, Sizes, memory_of, named_shapes, shaped
from lit_prune.files import markdown_table, say, write_text
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.pruning import prune


def scale(
    shapes: str,
    *,
    setting: Setting = SETTING,
    rates: Rates = RATES,
    measured_tokens: int = 128,
    device: str | None = None,
    check: bool = False,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Work, seconds and memory of searches on shapes: simulated counts, a block that is timed, and arithmetic.

    Args:
        shapes: Separated by commas - 8b, 70b, 405b, 300m and others of lit_prune/evaluation/shapes.json, or models as
            for `prune`, of which only the config is read.
        setting: What is searched for, on how much text; with `check` the modes are one_shot and lazy by default.
        rates: How fast devices are.
        measured_tokens: Tokens on which a block and the head are timed; the time is taken as linear in tokens.
        device: Device, such as cuda:0 or cpu; by default a GPU where there is one.
        check: Prune the shapes in earnest, and set predictions beside what that took. They must fit into memory.
        seed: Seed of the losses that are drawn.
        output: Markdown file for the tables.
    """
    require_writable(output)
    setting.require_possible()
    require_positive(measured_tokens=measured_tokens)
    device, models = default_device(device), {name: shaped(name) for name in model_names(shapes)}
    if check:
        page = _checked(models, setting, device, seed)
    else:
        batches = blank_batches(setting.num_batches, setting.batch_size, setting.window)
        works = {
            (name, mode): simulate(partial(shaped, name), batches, mode, amount=setting.amount, seed=seed)
            for name in models
            for mode in setting.modes or MODES
        }
        counts, *arithmetic = estimate_tables(models, works, setting, rates, source="Simulated")
        measured = _measured(models, works, measured_tokens, device, setting.batch_tokens)
        page = "\n\n".join([counts, arithmetic[0], *measured, *arithmetic[1:], ""])
    if output is not None:
        write_text(output, page)
    say(page)


def _measured(
    models: Mapping[str, PreTrainedModel],
    works: Mapping[tuple[str, str], SearchWork],
    tokens: int,
    device: str,
    batch_tokens: int,
) -> tuple[str, str]:
    timings = {name: _timing(model, tokens, device) for name, model in models.items()}
    rows = [(*names, *_hours(timings[names[0]], work, batch_tokens)) for names, work in works.items()]
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return (
        f"Measured: one block and the head on {tokens} tokens, bfloat16, {device}{threads}. Arithmetic: hours, by the "
        "counts above, linear in tokens.",
        markdown_table(("shape", "mode", "block, ms", "head, ms", "hours"), rows, LEFT),
    )


def _timing(model: PreTrainedModel, tokens: int, device: str) -> Timing | None:
    try:
        return measure_block(model, batch_size=1, window=tokens, device=device, dtype=torch.bfloat16)
    except MeasureError as error:
        say(str(error))
        return None


def _hours(timing: Timing | None, work: SearchWork, tokens: int) -> tuple[str, ...]:
    if timing is None:
        return ("no room", "", "")
    hours = timing.seconds(work, tokens) / 3600
    return f"{1000 * timing.block:,.2f}", f"{1000 * timing.head:,.2f}", f"{hours:,.2f}"


def _checked(models: Mapping[str, PreTrainedModel], setting: Setting, device: str, seed: int) -> str:
    lines: list[tuple[str, ...]] = []
    for name, model in models.items():
        for mode in setting.modes or ["one_shot", "lazy"]:
            found = list(_check(name, model, mode, setting, device, seed))
            say("\n".join(": ".join(line) for line in found), flush=True)  # the next one may take hours
            lines += found
    heads = ("shape", "mode", "of", "predicted", "measured", "measured / predicted")
    return markdown_table(heads, lines, LEFT) + "\n"


def _check(
    name: str, model: PreTrainedModel, mode: str, setting: Setting, device: str, seed: int
) -> Iterator[tuple[str, ...]]:
    kind, in_one_pass = MODES[mode]
    scorer = "cosine" if in_one_pass else "nri"
    batches = _text(name, setting, seed)
    work = simulate(partial(shaped, name), batches, mode, amount=setting.amount, seed=seed)
    text = {"batch_size": setting.batch_size, "window": setting.window}
    timing = measure_block(model, **text, device=device, dtype=torch.bfloat16)
    is_shape = name in named_shapes()
    whole = filled_model(model, device, torch.bfloat16) if is_shape else load(name, dtype=torch.bfloat16, device=device)
    plans, seconds = [], 0.0

    def search() -> None:
        nonlocal seconds
        started = time.perf_counter()
        plans.append(prune(whole, batches, amount=setting.amount, search=kind, scorer=scorer, progress=False))
        seconds = time.perf_counter() - started

    found = measure_search_memory(whole, batches, search)
    memory = memory_of(Sizes.of(model), **text, num_batches=setting.num_batches)
    passes, predicted = plans[0].cost, timing.seconds(work, setting.batch_tokens)
    yield _beside(name, mode, "dense passes", work.dense_passes, passes)
    yield _beside(name, mode, "seconds, by simulated counts", predicted, seconds)
    yield _beside(name, mode, "seconds, by the search's own counts", predicted * passes / work.dense_passes, seconds)
    yield _beside(name, mode, "peak, MB", memory.total / 1e6, (found.model + found.growth) / 1e6)


def _beside(name: str, mode: str, what: str, predicted: float, measured: float) -> tuple[str, ...]:
    return name, mode, what, f"{predicted:,.1f}", f"{measured:,.1f}", f"{measured / predicted:.2f}"


def _text(name: str, setting: Setting, seed: int) -> Sequence[Mapping[str, Tensor]]:
    """The calibration text of a model; tokens by chance for a shape."""
    wanted = setting.num_batches * setting.batch_size
    if name in named_shapes():
        windows = torch.randint(0, 1000, (wanted, setting.window))
    else:
        windows = drawn_windows("builtin", load_tokenizer(name), window=setting.window, wanted=wanted, seed=seed)
    return calibration_batches(windows[:wanted], setting.batch_size)


def filled_model(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A whole model of a shape, with random weights as transformers draws them; the random state stays as it was."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.device(device):
        torch.manual_seed(0)
        whole = type(model)._from_config(copy.deepcopy(model.config), dtype=dtype)  # type: ignore[no-untyped-call]
    return cast(PreTrainedModel, whole.eval())


main = partial(run, scale)

if __name__ == "__main__":
    sys.exit(main())
