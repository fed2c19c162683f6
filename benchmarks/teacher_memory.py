"""Peak memory of a distillation step: the dense model inside the student against a second copy of it.

`python -m benchmarks.teacher_memory MODEL PRUNED` prints the table of docs/benchmarks/results.md, each row from a
process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.memory import PROCESS, resident
from lit_prune.healing import DenseTeacher, HealingSettings, LoraHealing, heal
from lit_prune.loading.models import load
from lit_prune.measure import model_inputs

WINDOW, BATCH_SIZE = 256, 4
ROWS = ("none", "inside", "second copy")


class SecondCopy:
    """A teacher as others have it: another model beside the student."""

    def __init__(self, dense: PreTrainedModel, student: PreTrainedModel) -> None:
        self.dense, self.student = dense, student

    def keep(self, parameters: Any) -> None:
        """Nothing needs to be remembered of the student."""

    def to(self, device: Any) -> None:
        """The copy stays where it was loaded."""

    @torch.no_grad()
    def outputs(self, batch: Mapping[str, Tensor], *, hidden_states: bool = False) -> Any:
        """As `DenseTeacher` has it."""
        return self.dense(**model_inputs(self.dense, batch), use_cache=False, output_hidden_states=hidden_states)


def peak(row: str, model: str, pruned: str, results: Any) -> None:
    """Bytes at the peak of two steps, above the process without any model."""
    torch.set_num_threads(1)
    before = resident("VmRSS")
    student = load(pruned, dtype="bfloat16")
    teacher: Any = None
    if row == "inside":
        teacher = DenseTeacher.of_pruned(load(model, dtype="bfloat16"), student)
        student = teacher.student
    elif row == "second copy":
        teacher = SecondCopy(load(model, dtype="bfloat16"), student)
    windows = torch.randint(100, 10_000, (3 * BATCH_SIZE, WINDOW), generator=torch.Generator().manual_seed(0))
    (PROCESS / "clear_refs").write_text("5")  # the peak counts from here
    settings = HealingSettings(tokens=2 * BATCH_SIZE * WINDOW, validations=1)
    heal(
        student,
        windows[BATCH_SIZE:],
        windows[:1],
        teacher=teacher,
        lora=LoraHealing(rank=16),
        settings=settings,
        batch_size=BATCH_SIZE,
        accelerator="cpu",
        progress=False,
    )
    results.put(resident("VmHWM") - before)


def main(model: str, pruned: str) -> None:
    """Print the table."""
    context = get_context("spawn")
    print("| teacher | peak, MB |\n| --- | ---: |")
    for row in ROWS:
        results = context.Queue()
        process = context.Process(target=peak, args=(row, model, pruned, results))
        process.start()
        found = results.get()
        process.join()
        print(f"| {row} | {found / 1e6:,.0f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
