"""`lit-prune bench scale`: what searches will take on models, those included that this machine could not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lit_prune.commands.arguments import default_device, model_names, require_writable
from lit_prune.data import require_positive
from lit_prune.errors import MeasureError
from lit_prune.evaluation import (
    MODES,
    Sizes,
    Timing,
    Work,
    estimated_work,
    load_of,
    measure_block,
    memory_of,
    require_mode,
    shaped,
)
from lit_prune.files import markdown_table, say, write_text
from lit_prune.searches import require_share

DEVICES = (1, 8, 64)
GB = 1e9
LEFT = ("shape", "mode", "of")
"""Heads of words."""


@dataclass(frozen=True)
class Setting:
    """What searches are asked for, and on how much text.

    Attributes:
        amount: Share of all parameters to remove, above 0 and below 1.
        window: Tokens in a window.
        num_windows: Windows that a search measures on.
        batch_size: Windows in a batch.
        modes: Of progressive, lazy, one_shot and, for scorers that need one pass, 'progressive, stream' and
            'one_shot, stream'; all of them by default.
    """

    amount: float = 0.2
    window: int = 2048
    num_windows: int = 8
    batch_size: int = 2
    modes: list[str] | None = None

    def require_possible(self) -> None:
        """Refuse numbers out of their range, and modes that are unknown.

        Raises:
            LitPruneError: With what was given.
        """
        require_share(self.amount)
        require_positive(window=self.window, num_windows=self.num_windows, batch_size=self.batch_size)
        for mode in self.modes or ():
            require_mode(mode)

    @property
    def num_batches(self) -> int:
        """Batches of the calibration set."""
        return -(-self.num_windows // self.batch_size)

    @property
    def batch_tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch_size * self.window


@dataclass(frozen=True)
class Hardware:
    """What runs the search, measured or assumed.

    Attributes:
        measured_tokens: Tokens on which a block and the head are timed; the time is taken as linear in tokens.
        flops: Achieved FLOP/s of a device, for the table of times by arithmetic; by default 1e14, 4e14, 3.2e15.
        bandwidth: Bytes/s that go with the first of these; those of the others grow in proportion.
        device: Such as cuda:0 or cpu; a GPU where there is one.
    """

    measured_tokens: int = 128
    flops: list[float] | None = None
    bandwidth: float = 3e12
    device: str | None = None


SETTING, HARDWARE = Setting(), Hardware()


def bench_scale(
    shapes: str, *, setting: Setting = SETTING, hardware: Hardware = HARDWARE, output: str | None = None
) -> None:
    """Estimate passes, seconds and memory of searches on shapes, by arithmetic and by one block that is timed.

    Args:
        shapes: Separated by commas - 8b, 70b, 405b, 300m, or models as for `prune`, of which only the config is read.
        setting: What is searched for, on how much text.
        hardware: What runs it.
        output: Markdown file for the tables.
    """
    require_writable(output)
    setting.require_possible()
    models = {name: shaped(name) for name in model_names(shapes)}

    def count(name: str, mode: str) -> Work:
        return estimated_work(models[name], mode, amount=setting.amount, num_batches=setting.num_batches)

    page = scale_page(models, setting, hardware, count, source="Estimated")
    if output is not None:
        write_text(output, page)
    say(page)


def scale_page(
    models: Mapping[str, PreTrainedModel],
    setting: Setting,
    hardware: Hardware,
    count: Callable[[str, str], Work],
    *,
    source: str,
) -> str:
    """Tables of what searches take, in Markdown.

    Args:
        models: By name, on the meta device.
        setting: What is searched for, on how much text.
        hardware: What runs it.
        count: What a search runs, by the names of a model and of a mode.
        source: How the counts were had, in a word.
    """
    device = default_device(hardware.device)
    require_positive(measured_tokens=hardware.measured_tokens)
    rates = hardware.flops or [1e14, 4e14, 3.2e15]
    counts, seconds, loads, memories = [], [], [], []
    for name, model in models.items():
        sizes = Sizes.of(model)
        timing = _timing(model, hardware.measured_tokens, device)
        for mode in setting.modes or MODES:
            work = count(name, mode)
            cells = (f"{work.block_evaluations:,}", f"{work.head_evaluations:,}", f"{work.dense_passes:,.1f}")
            counts.append((name, mode, str(work.num_removed), *cells))
            seconds.append((name, mode, *_timed(timing, work, setting.batch_tokens)))
            loads.append((name, mode, *_loaded(sizes, work, setting.batch_tokens, rates, hardware.bandwidth)))
        memories += list(_memories(name, sizes, setting))
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return "\n\n".join(
        [
            f"{source}: {setting.num_batches} batches of {setting.batch_size} x {setting.window} tokens, "
            f"{setting.amount:.0%} of the parameters.",
            markdown_table(("shape", "mode", "removed", "block evaluations", "heads", "dense passes"), counts, LEFT),
            f"Measured: one block and the head on {hardware.measured_tokens} tokens, bfloat16, {device}{threads}. "
            "Arithmetic: hours, by the counts above, linear in tokens.",
            markdown_table(("shape", "mode", "block, ms", "head, ms", "hours"), seconds, LEFT),
            f"Arithmetic: hours at so many FLOP/s achieved ({hardware.bandwidth:.0e} bytes/s with the first, in "
            "proportion for the others).",
            markdown_table(("shape", "mode", "FLOPs", "bytes read", *(f"{rate:.1e}" for rate in rates)), loads, LEFT),
            "Arithmetic: GB on each device.",
            markdown_table(
                ("shape", "devices", "weights", "states", "kept", "logits", "in all", "one copy"), memories, LEFT
            ),
            "",
        ]
    )


def _timing(model: PreTrainedModel, tokens: int, device: str) -> Timing | None:
    try:
        return measure_block(model, batch_size=1, window=tokens, device=device, dtype=torch.bfloat16)
    except MeasureError as error:
        say(str(error))
        return None


def _timed(timing: Timing | None, work: Work, tokens: int) -> tuple[str, ...]:
    if timing is None:
        return ("no room", "", "")
    hours = timing.seconds(work, tokens) / 3600
    return f"{1000 * timing.block:,.2f}", f"{1000 * timing.head:,.2f}", f"{hours:,.2f}"


def _loaded(sizes: Sizes, work: Work, tokens: int, rates: Sequence[float], bandwidth: float) -> Iterator[str]:
    need = load_of(sizes, work, tokens)
    yield from (f"{need.flops:.2e}", f"{need.bytes_read:.2e}")
    yield from (f"{need.seconds(rate, bandwidth * rate / rates[0]) / 3600:,.2f}" for rate in rates)


def _memories(name: str, sizes: Sizes, setting: Setting) -> Iterator[tuple[str, ...]]:
    text = {"batch_size": setting.batch_size, "window": setting.window, "num_batches": setting.num_batches}
    for devices in DEVICES:
        found = memory_of(sizes, **text, devices=devices)
        # The folder is read back and compared: a second model, on the CPU of one process.
        parts = (found.weights, found.states, found.kept, found.logits, found.total, sizes.itemsize * sizes.parameters)
        yield name, str(devices), *(f"{part / GB:,.2f}" for part in parts)
