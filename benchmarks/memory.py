"""`python -m benchmarks.memory MODEL`: what a search takes beside the model, at the peak of the process or GPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import run
from lit_prune.anatomy import find_sublayers, language_model
from lit_prune.commands.arguments import require_writable
from lit_prune.commands.options import Loading, Sample
from lit_prune.data import calibration_batches
from lit_prune.errors import MeasureError
from lit_prune.files import markdown_table, say, write_text
from lit_prune.measure import input_ids_of
from lit_prune.pruning import prune
from lit_prune.searches import require_share

SAMPLE, LOADING = Sample(window=256, num_windows=8, batch_size=2), Loading()
PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class SearchMemory:
    """What a search takes, in bytes.

    Attributes:
        model: Bytes of the parameters.
        states: Bytes of what the blocks put out for one sequence, the longest.
        growth: Growth from just before the search to its peak.
    """

    model: int
    states: int
    growth: int

    @property
    def share(self) -> float:
        """Model and growth, of the model and one sequence's states.

        Example:
            >>> SearchMemory(model=900, states=100, growth=150).share
            1.05
        """
        return (self.model + self.growth) / (self.model + self.states)


def measure_search_memory(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], search: Callable[[], object]
) -> SearchMemory:
    """Search, and say what memory that took.

    Args:
        model: A causal language model, on one device.
        batches: The calibration batches.
        search: Function that searches the model on them.

    Raises:
        MeasureError: The peak cannot be read: on a device that is no CUDA GPU, on a CPU without Linux.
    """
    network = language_model(model)
    anatomy = find_sublayers(network)
    size = sum(parameter.nbytes for parameter in network.parameters())
    longest = max(input_ids_of(batch).shape[1] for batch in batches)
    states = len(anatomy.blocks) * longest * anatomy.facts().hidden_size * network.dtype.itemsize
    before = _begin(network.device)
    search()
    return SearchMemory(size, states, _peak(network.device) - before)


def _begin(device: torch.device) -> int:
    """Bytes in use now; the peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not (PROCESS / "clear_refs").exists():
        raise MeasureError(f"the memory of a search can be read on CUDA, and on Linux's CPUs; found {device}")
    (PROCESS / "clear_refs").write_text("5")  # see proc(5): resets VmHWM
    return resident("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


def resident(name: str) -> int:
    """Bytes of this process in memory: `VmRSS` now, `VmHWM` at most."""
    found = re.search(rf"{name}:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def memory(
    model: str,
    *,
    search: str = "progressive",
    amount: float = 0.2,
    scorer: str = "nri",
    sample: Sample = SAMPLE,
    loading: Loading = LOADING,
    offload: bool = False,
    output: str | None = None,
) -> None:
    """Measure the memory that a search takes, at its peak.

    Args:
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        search: A search as for prune.
        amount: Share of all parameters to remove, above 0 and below 1.
        scorer: nri, ri or ppl.
        sample: The text that the search measures on.
        loading: How the model is loaded.
        offload: Whether states are kept in the CPU's memory, as for prune.
        output: Markdown file for the table.
    """
    require_writable(output)
    require_share(amount)
    sample.require_possible()
    batches = calibration_batches(sample.windows(loading.tokenizer(model)), sample.batch_size)
    network = loading.model(model)
    found = measure_search_memory(
        network, batches, lambda: prune(network, batches, amount=amount, search=search, scorer=scorer, offload=offload)
    )
    page = table(found)
    if output is not None:
        write_text(output, page)
    say(page)


def table(found: SearchMemory) -> str:
    """The figures as a Markdown table."""
    figures = {"model": found.model, "states of one sequence": found.states, "growth at the peak": found.growth}
    rows = [(name, f"{value / 1e6:,.1f} MB") for name, value in figures.items()]
    share = ("model and growth, of model and states", f"{found.share:.2f}")
    return f"{markdown_table(('memory', ''), [*rows, share])}\n"


main = partial(run, memory)

if __name__ == "__main__":
    sys.exit(main())
