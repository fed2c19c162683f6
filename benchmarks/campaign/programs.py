"""A user's training script: healing between drops, a checkpoint after every epoch, and the last whole one to go on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_prune.callbacks import SublayerPruneCallback
from torch.utils.data import DataLoader

from lit_prune import LitCausalLM, LoraHealing
from lit_prune.errors import ModelError
from lit_prune.loading.checksums import require_intact_checkpoint
from tests.tiny import VOCAB_SIZE

NUM_EPOCHS = 4


def fit(dense: Path, folder: Path) -> None:
    """Train, drop, heal and save as `folder/pruned`; what is in `folder/kept` is gone on from."""
    L.seed_everything(3, verbose=False)
    warnings.simplefilter("ignore")
    module = LitCausalLM(str(dense), learning_rate=1e-3)
    pruning = SublayerPruneCallback(amount=0.3, healing=LoraHealing(rank=2), save_to="pruned", progress=False)
    keep = ModelCheckpoint(folder / "kept", save_top_k=-1, filename="{epoch}")
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=NUM_EPOCHS,
        callbacks=[pruning, keep],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    training = random_batches(12, 4, seed=1, shuffle=True)
    trainer.fit(module, training, random_batches(6, 3, seed=2), ckpt_path=last_whole(folder / "kept"))


def random_batches(number: int, batch_size: int, *, seed: int, shuffle: bool = False) -> DataLoader[Any]:
    """Batches of some windows of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    windows = [{"input_ids": torch.randint(3, VOCAB_SIZE, (24,), generator=generator)} for _ in range(number)]
    return DataLoader(windows, batch_size=batch_size, shuffle=shuffle)  # type: ignore[arg-type]


def last_whole(folder: Path, tell: Callable[[str], object] = print) -> Path | None:
    """The checkpoint of the latest epoch that is what was written."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]), reverse=True):
        try:
            require_intact_checkpoint(path)
        except ModelError as error:
            tell(f"passed over: {error}")
        else:
            return path
    return None
