"""Pruning in a training of `pytorch_lightning`, the other import name of Lightning, whose classes are others."""

import os
import subprocess
import sys

SCRIPT = """
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI

from lit_prune import load
from lit_prune.surgery import removed_sublayers
from tests.tiny import tiny_model


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = tiny_model("llama")

    def training_step(self, batch, _):
        return self.model(**batch, labels=batch["input_ids"]).loss

    def validation_step(self, batch, _):
        self.log("val_loss", self.training_step(batch, 0))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        texts = torch.randint(3, 60, (4, 8), generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader([{"input_ids": text} for text in texts], 4)

    val_dataloader = train_dataloader


if __name__ == "__main__":
    cli = LightningCLI(Module, Data, trainer_defaults={"accelerator": "cpu", "devices": 1, "max_epochs": 2})
    gone = removed_sublayers(cli.model.model)
    assert len(gone) == 2, gone
    assert removed_sublayers(load(f"{cli.trainer.log_dir}/pruned")) == gone
    checkpoint = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert checkpoint["lit_prune"]["removed"] == [str(each) for each in gone]
"""


def test_its_trainer_command_line_logger_and_checkpoints(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [
        "fit",
        "--trainer.callbacks=lit_prune.callbacks.SublayerPruneCallback",
        "--trainer.callbacks.amount=0.2",
        "--trainer.callbacks.save_to=pruned",
        "--trainer.callbacks+=pytorch_lightning.callbacks.ModelCheckpoint",
        "--trainer.logger=pytorch_lightning.loggers.TensorBoardLogger",
        f"--trainer.logger.save_dir={tmp_path}",
    ]
    run = subprocess.run(
        [sys.executable, tmp_path / "script.py", *arguments],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
