"""`lit-prune bench scale`: what searches would take on models that this machine could not hold."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.commands.arguments import default_device, model_names, require_writable
from lit_prune.data import calibration_batches, drawn_windows, require_positive
from lit_prune.errors import MeasureError
from lit_prune.evaluation.memory import measure_search_memory
from lit_prune.evaluation.scale import MODES, Work, require_mode, shape_names, shaped, simulate
from lit_prune.evaluation.scale_costs import (
    Sizes,
    Timing,
    blank_batches,
    filled_model,
    load_of,
    measure_block,
    memory_of,
)
from lit_prune.files import markdown_table, say, write_text
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.pruning import prune
from lit_prune.searches import require_share

DEVICES = (1, 8, 64)
GB = 1e9
LEFT = ("shape", "mode", "of")
"""Heads of words."""


def bench_scale(
    shapes: str,
    *,
    amount: float = 0.2,
    window: int = 2048,
    num_windows: int = 8,
    batch_size: int = 2,
    modes: list[str] | None = None,
    measured_tokens: int = 128,
    flops: list[float] | None = None,
    bandwidth: float = 3e12,
    check: bool = False,
    device: str | None = None,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Work, seconds and memory of searches on shapes: simulated counts, a block that is timed, and arithmetic.

    Args:
        shapes: Separated by commas - 8b, 70b, 405b, 300m, or models as for `prune`, of which only the config is read.
        amount: Share of all parameters to remove, above 0 and below 1.
        window: Tokens in a window.
        num_windows: Windows that a search measures on.
        batch_size: Windows in a batch.
        modes: Of progressive, lazy, one_shot and, for scorers that need one pass, 'progressive, stream' and
            'one_shot, stream'; all of them by default, and with `check` one_shot and lazy.
        measured_tokens: Tokens on which a block and the head are timed; the time is taken as linear in tokens.
        flops: Achieved FLOP/s of a device, for the table of times by arithmetic; by default 1e14, 4e14, 3.2e15.
        bandwidth: Bytes/s that go with the first of these; those of the others grow in proportion.
        check: Prune the shapes in earnest, and set predictions beside what that took. They must fit into memory.
        device: Such as cuda:0 or cpu; a GPU where there is one.
        seed: Of the losses that are drawn.
        output: Markdown file for the tables.
    """
    require_writable(output)
    require_share(amount)
    require_positive(window=window, num_windows=num_windows, batch_size=batch_size, measured_tokens=measured_tokens)
    for each in modes or ():
        require_mode(each)
    settings = {"amount": amount, "seed": seed}
    sizes = (-(-num_windows // batch_size), batch_size, window)
    models = {name: shaped(name) for name in model_names(shapes)}
    if check:
        page = _checked(models, sizes, modes or ["one_shot", "lazy"], default_device(device), settings)
    else:
        rates = flops or [1e14, 4e14, 3.2e15]
        wanted = modes or list(MODES)
        page = _predicted(models, sizes, wanted, default_device(device), measured_tokens, rates, bandwidth, settings)
    if output is not None:
        write_text(output, page)
    say(page)


def _predicted(
    models: Mapping[str, PreTrainedModel],
    sizes: tuple[int, int, int],
    modes: Sequence[str],
    device: str,
    measured_tokens: int,
    rates: Sequence[float],
    bandwidth: float,
    settings: Mapping[str, Any],
) -> str:
    num_batches, batch_size, window = sizes
    tokens = batch_size * window
    counts, seconds, loads, memories = [], [], [], []
    for name, model in models.items():
        size = Sizes.of(model)
        timing = _timing(model, 1, measured_tokens, device)
        for mode in modes:
            work = simulate(lambda name=name: shaped(name), blank_batches(*sizes), mode, **settings)  # type: ignore[misc]
            cells = (f"{work.block_evaluations:,}", f"{work.head_evaluations:,}", f"{work.dense_passes:,.1f}")
            counts.append((name, mode, str(work.num_removed), *cells))
            seconds.append((name, mode, *_timed(timing, work, tokens)))
            need = load_of(size, work, tokens)
            times = [f"{need.seconds(rate, bandwidth * rate / rates[0]) / 3600:,.2f}" for rate in rates]
            loads.append((name, mode, f"{need.flops:.2e}", f"{need.bytes_read:.2e}", *times))
        memories += list(_memories(name, size, sizes))
    setting = f"{num_batches} batches of {batch_size} x {window} tokens, {settings['amount']:.0%} of the parameters."
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return "\n\n".join(
        [
            f"Simulated: {setting}",
            markdown_table(("shape", "mode", "removed", "block evaluations", "heads", "dense passes"), counts, LEFT),
            f"Measured: one block and the head on {measured_tokens} tokens, bfloat16, {device}{threads}. Arithmetic: "
            "hours, by the counts above, linear in tokens.",
            markdown_table(("shape", "mode", "block, ms", "head, ms", "hours"), seconds, LEFT),
            f"Arithmetic: hours at so many FLOP/s achieved ({bandwidth:.0e} bytes/s with the first, in proportion for "
            "the others).",
            markdown_table(("shape", "mode", "FLOPs", "bytes read", *(f"{each:.1e}" for each in rates)), loads, LEFT),
            "Arithmetic: GB on each device.",
            markdown_table(
                ("shape", "devices", "weights", "states", "kept", "logits", "in all", "one copy"), memories, LEFT
            ),
            "",
        ]
    )


def _timing(model: PreTrainedModel, batch_size: int, window: int, device: str) -> Timing | None:
    try:
        return measure_block(model, batch_size=batch_size, window=window, device=device, dtype=torch.bfloat16)
    except MeasureError as error:
        say(str(error))
        return None


def _timed(timing: Timing | None, work: Work, tokens: int) -> tuple[str, ...]:
    if timing is None:
        return ("no room", "", "")
    hours = timing.seconds(work, tokens) / 3600
    return f"{1000 * timing.block:,.2f}", f"{1000 * timing.head:,.2f}", f"{hours:,.2f}"


def _memories(name: str, size: Sizes, sizes: tuple[int, int, int]) -> Iterator[tuple[str, ...]]:
    num_batches, batch_size, window = sizes
    for devices in DEVICES:
        found = memory_of(size, batch_size=batch_size, window=window, num_batches=num_batches, devices=devices)
        # The folder is read back and compared: a second model, on the CPU of one process.
        parts = (found.weights, found.states, found.kept, found.logits, found.total, size.itemsize * size.parameters)
        yield name, str(devices), *(f"{each / GB:,.2f}" for each in parts)


def _checked(
    models: Mapping[str, PreTrainedModel],
    sizes: tuple[int, int, int],
    modes: Sequence[str],
    device: str,
    settings: Mapping[str, Any],
) -> str:
    lines: list[tuple[str, ...]] = []
    for name, model in models.items():
        for mode in modes:
            found = list(_check(name, model, mode, sizes, device, settings))
            say("\n".join(": ".join(each) for each in found), flush=True)  # the next one may take hours
            lines += found
    heads = ("shape", "mode", "of", "predicted", "measured", "measured / predicted")
    return markdown_table(heads, lines, LEFT) + "\n"


def _check(
    name: str,
    model: PreTrainedModel,
    mode: str,
    sizes: tuple[int, int, int],
    device: str,
    settings: Mapping[str, Any],
) -> Iterator[tuple[str, ...]]:
    num_batches, batch_size, window = sizes
    size = Sizes.of(model)
    kind, in_one_pass = MODES[mode]
    batches = _text(name, sizes, settings["seed"])
    work = simulate(lambda: shaped(name), batches, mode, **settings)
    timing = measure_block(model, batch_size=batch_size, window=window, device=device, dtype=torch.bfloat16)
    is_shape = name in shape_names()
    whole = filled_model(model, device, torch.bfloat16) if is_shape else load(name, dtype=torch.bfloat16, device=device)
    plans, started = [], 0.0

    def search() -> None:
        nonlocal started
        started = time.perf_counter()
        options: Any = {"search": kind, "scorer": "cosine" if in_one_pass else "nri"}
        plans.append(prune(whole, batches, amount=settings["amount"], progress=False, **options))
        started = time.perf_counter() - started

    found = measure_search_memory(whole, batches, search)
    memory = memory_of(size, batch_size=batch_size, window=window, num_batches=num_batches)
    passes = plans[0].cost
    yield _beside(name, mode, "dense passes", work.dense_passes, passes)
    yield _beside(name, mode, "seconds, by simulated counts", timing.seconds(work, batch_size * window), started)
    actual = timing.seconds(work, batch_size * window) * passes / work.dense_passes
    yield _beside(name, mode, "seconds, by the search's own counts", actual, started)
    yield _beside(name, mode, "peak, MB", memory.total / 1e6, (found.model + found.growth) / 1e6)


def _beside(name: str, mode: str, what: str, predicted: float, measured: float) -> tuple[str, ...]:
    return name, mode, what, f"{predicted:,.1f}", f"{measured:,.1f}", f"{measured / predicted:.2f}"


def _text(name: str, sizes: tuple[int, int, int], seed: int) -> Sequence[Mapping[str, Tensor]]:
    """Of a model, its calibration text; of a shape, tokens by chance."""
    num_batches, batch_size, window = sizes
    if name in shape_names():
        windows = torch.randint(0, 1000, (num_batches * batch_size, window))
    else:
        drawn = drawn_windows(
            "builtin", load_tokenizer(name), window=window, wanted=num_batches * batch_size, seed=seed
        )
        windows = drawn[: num_batches * batch_size]
    return calibration_batches(windows, batch_size)
