"""Prune a language model inside a LightningModule of your own: one callback, nothing else changes.

python examples/own_module.py --model HuggingFaceTB/SmolLM2-135M-Instruct --text builtin
"""

import argparse

import lightning as L
import torch
from lit_prune.callbacks import SublayerPruneCallback
from transformers import AutoModelForCausalLM

from lit_prune import TextDataModule, load_tokenizer


class Mine(L.LightningModule):
    """A module as people write it: a model, its loss, an optimizer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.lm = AutoModelForCausalLM.from_pretrained(name)

    def training_step(self, batch, batch_idx):
        loss = self.lm(**batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.lm(**batch).loss, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--text", default="builtin", help="builtin, a file, a folder or a hub data set")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=200, help="for training")
    parser.add_argument("--output", default="runs/own-module")
    asked = parser.parse_args()
    data = TextDataModule(
        asked.text,
        tokenizer=load_tokenizer(asked.model),
        window=asked.window,
        batch_size=4,
        train_windows=asked.windows,
        val_windows=8,
    )
    pruning = SublayerPruneCallback(amount=0.2, save_to="pruned")
    trainer = L.Trainer(max_epochs=4, default_root_dir=asked.output, callbacks=[pruning])
    trainer.fit(Mine(asked.model), data)
    print(f"{pruning.plan.num_removed_parameters:,} parameters less: {', '.join(map(str, pruning.plan.removed))}")


if __name__ == "__main__":
    main()
