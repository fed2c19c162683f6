"""`lit-prune bench scale`: what searches will take on models, those included that this machine could not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from lit_prune.commands.arguments import model_names, require_writable
from lit_prune.files import markdown_table, say, write_text
from lit_prune.searches import require_share

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_prune.evaluation import SearchWork, Sizes

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
        modes: Searches, of progressive, lazy, one_shot and, for scorers that need one pass, 'progressive, stream' and
            'one_shot, stream'; all of them by default.
    """

    amount: float = 0.2
    window: int = 2048
    num_windows: int = 8
    batch_size: int = 2
    modes: list[str] | None = None

    def require_possible(self) -> None:
        """Refuse numbers out of their range, and modes that are unknown."""
        from lit_prune.data import require_positive
        from lit_prune.evaluation import require_mode

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
class Rates:
    """How fast devices are, for hours by arithmetic.

    Attributes:
        flops: Achieved FLOP/s of a device; by default 1e14, 4e14, 3.2e15.
        bandwidth: Bytes/s that go with the first of these; those of the others grow in proportion.
    """

    flops: list[float] | None = None
    bandwidth: float = 3e12

    @property
    def columns(self) -> list[tuple[float, float]]:
        """FLOP/s and bytes/s of every column."""
        flops = self.flops or [1e14, 4e14, 3.2e15]
        return [(rate, self.bandwidth * rate / flops[0]) for rate in flops]


SETTING, RATES = Setting(), Rates()


def bench_scale(shapes: str, *, setting: Setting = SETTING, rates: Rates = RATES, output: str | None = None) -> None:
    """Estimate passes, hours and memory of searches on shapes, by arithmetic.

    Args:
        shapes: Separated by commas - 8b, 70b, 405b, 300m and others of lit_prune/evaluation/shapes.json, or models as
            for `prune`, of which only the config is read.
        setting: What is searched for, on how much text.
        rates: How fast devices are.
        output: Markdown file for the tables.
    """
    from lit_prune.evaluation import MODES, estimated_work, shaped

    require_writable(output)
    setting.require_possible()
    models = {name: shaped(name) for name in model_names(shapes)}
    count = partial(estimated_work, amount=setting.amount, num_batches=setting.num_batches)
    works = {(name, mode): count(model, mode) for name, model in models.items() for mode in setting.modes or MODES}
    page = "\n\n".join([*estimate_tables(models, works, setting, rates, source="Estimated"), ""])
    if output is not None:
        write_text(output, page)
    say(page)


def estimate_tables(
    models: Mapping[str, PreTrainedModel],
    works: Mapping[tuple[str, str], SearchWork],
    setting: Setting,
    rates: Rates,
    *,
    source: str,
) -> list[str]:
    """Tables of what searches take, in Markdown: counts, hours by arithmetic, and memory, a sentence ahead of each.

    `works` has the work of every search by the names of a model and of a mode, and `source` tells how counts were had.
    """
    from lit_prune.evaluation import Sizes

    sizes = {name: Sizes.of(model) for name, model in models.items()}
    counts = [
        (
            *names,
            str(work.num_removed),
            f"{work.block_evaluations:,}",
            f"{work.head_evaluations:,}",
            f"{work.dense_passes:,.1f}",
        )
        for names, work in works.items()
    ]
    heads = [f"{flops:.1e}" for flops, _ in rates.columns]
    hours = [(*names, *_hours(sizes[names[0]], work, setting, rates)) for names, work in works.items()]
    memories = [row for name, size in sizes.items() for row in _memories(name, size, setting)]
    return [
        f"{source}: {setting.num_batches} batches of {setting.batch_size} x {setting.window} tokens, "
        f"{setting.amount:.0%} of the parameters.",
        markdown_table(("shape", "mode", "removed", "block evaluations", "heads", "dense passes"), counts, LEFT),
        f"Arithmetic: hours at so many FLOP/s achieved ({rates.bandwidth:.0e} bytes/s with the first, in proportion "
        "for the others).",
        markdown_table(("shape", "mode", "FLOPs", "bytes read", *heads), hours, LEFT),
        "Arithmetic: GB on each device.",
        markdown_table(
            ("shape", "devices", "weights", "states", "kept", "logits", "in all", "one copy"), memories, LEFT
        ),
    ]


def _hours(sizes: Sizes, work: SearchWork, setting: Setting, rates: Rates) -> Iterator[str]:
    from lit_prune.evaluation import load_of

    load = load_of(sizes, work, setting.batch_tokens)
    yield from (f"{load.flops:.2e}", f"{load.bytes_read:.2e}")
    yield from (f"{load.seconds(*column) / 3600:,.2f}" for column in rates.columns)


def _memories(name: str, sizes: Sizes, setting: Setting) -> Iterator[tuple[str, ...]]:
    from lit_prune.evaluation import memory_of

    text = {"batch_size": setting.batch_size, "window": setting.window, "num_batches": setting.num_batches}
    for devices in DEVICES:
        found = memory_of(sizes, **text, devices=devices)
        # The folder is read back and compared: a second model, on the CPU of one process.
        parts = (found.weights, found.states, found.kept, found.logits, found.total, sizes.itemsize * sizes.parameters)
        yield name, str(devices), *(f"{part / GB:,.2f}" for part in parts)
