"""A user's training script: healing between drops, a checkpoint after every epoch, and the last whole one to go on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

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
    train, val = windows(12, seed=1), windows(6, seed=2)
    loaders = DataLoader(train, batch_size=4, shuffle=True), DataLoader(val, batch_size=3)  # type: ignore[arg-type]
    trainer.fit(module, *loaders, ckpt_path=last_whole(folder / "kept"))


def windows(number: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, VOCAB_SIZE, (24,), generator=generator)} for _ in range(number)]


def last_whole(folder: Path, tell: Callable[[str], object] = print) -> Path | None:
    """The checkpoint of the latest epoch that is what was written."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda each: int(each.stem.partition("=")[2]), reverse=True):
        try:
            require_intact_checkpoint(path)
        except ModelError as error:
            tell(f"passed over: {error}")
        else:
            return path
    return None
