"""`python -m benchmarks.campaign.soak`: 50 rounds of drop, heal, checkpoint, resume in one process, on 64 blocks.

A round is an epoch: the callback drops two sublayers, adapters are trained for some steps, a checkpoint is written, and
the next round begins with new objects from it. Ends with 1 where anything differs from what must be, or memory grows.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lit_prune.callbacks import SublayerPruneCallback

from benchmarks.campaign.programs import random_batches
from lit_prune import LitCausalLM, LoraHealing
from lit_prune.surgery import removed_sublayers
from tests.tiny import tiny_model

NUM_BLOCKS, PER_ROUND, WARM_UP = 64, 2, 10
ALLOWED_MIB = 8
"""By which memory may differ, from round to round of what the allocator keeps."""


class Watch(Callback):
    """Keeps what a checkpoint must give back, and compares it with what the next round finds."""

    def __init__(self) -> None:
        self.state: dict[str, torch.Tensor] = {}
        self.num_compared = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first drop of the round."""
        found = pl_module.state_dict()
        if self.state:
            assert found.keys() == self.state.keys(), "other weights after the resume"
            assert all(torch.equal(tensor, found[name]) for name, tensor in self.state.items()), "weights differ"
            self.num_compared += len(found)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What the checkpoint of the round holds."""
        self.state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def one_round(number: int, folder: Path, watch: Watch) -> None:
    """From the last round's checkpoint to the next, with new objects."""
    module = LitCausalLM(tiny_model("llama", num_hidden_layers=NUM_BLOCKS), learning_rate=1e-3)
    dense = sum(parameter.numel() for parameter in module.model.parameters())
    pruning = SublayerPruneCallback(schedule=PER_ROUND, healing=LoraHealing(rank=2), progress=False)
    keep = ModelCheckpoint(folder, filename="round", enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=number + 1,
        num_sanity_val_steps=0,
        callbacks=[pruning, keep, watch],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    path = folder / "round.ckpt" if number else None
    trainer.fit(module, random_batches(8, 2, seed=1), random_batches(4, 4, seed=2), ckpt_path=path)
    plan = pruning.plan
    assert plan is not None
    assert [step.epoch for step in plan.steps] == [epoch for epoch in range(number + 1) for _ in range(PER_ROUND)]
    assert set(plan.removed) == set(removed_sublayers(module.model)), "the plan is of another model"
    # The fit has ended: adapters are merged.
    left = sum(parameter.numel() for parameter in module.model.parameters())
    assert left == dense - plan.num_removed_parameters, f"{left} parameters are left"


def resident() -> float:
    """Memory of this process, in MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    """All rounds, and what they came to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    number = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    watch, memory, begin = Watch(), [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(number):
            one_round(index, Path(folder), watch)
            memory.append(resident())
            print(f"round {index + 1}: {memory[-1]:.1f} MiB", file=sys.stderr, flush=True)
    warm = memory[WARM_UP - 1 :] or memory
    growth = max(warm) - warm[0]
    print(
        f"{number} rounds in {(time.monotonic() - begin) / 60:.1f} minutes: {number * PER_ROUND} sublayers dropped, "
        f"{watch.num_compared:,} tensors equal after {number - 1} resumes; memory {warm[0]:.1f} MiB after round "
        f"{min(WARM_UP, number)}, {max(warm):.1f} at most since, {memory[-1]:.1f} at the end"
    )
    return int(growth > ALLOWED_MIB)


if __name__ == "__main__":
    sys.exit(main())
