"""Training with the callback, cut and resumed, for every architecture."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_prune.callbacks import SublayerPruneCallback
from torch.utils.data import DataLoader

from lit_prune import LitCausalLM
from tests.architectures.report import capability
from tests.tiny import tiny_model

GENERATOR = torch.Generator().manual_seed(0)
TEXTS = [{"input_ids": torch.randint(3, 128, (12,), generator=GENERATOR)} for _ in range(4)]


@capability("resume")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resumed_training_drops_and_learns_the_same(architecture, tmp_path, finds):
    def run(folder, ckpt_path=None):
        L.seed_everything(1, verbose=False)
        module = LitCausalLM(tiny_model(architecture), learning_rate=1e-2)
        callback = SublayerPruneCallback(schedule=2, progress=False)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            callbacks=[callback, ModelCheckpoint(tmp_path / folder, save_top_k=-1, filename="{epoch}")],
        )
        trainer.fit(module, DataLoader(TEXTS, batch_size=2), DataLoader(TEXTS, batch_size=4), ckpt_path=ckpt_path)
        return callback.plan.removed, module.model.state_dict()

    removed, weights = run("whole")
    assert len(removed) == 4
    resumed_removed, resumed = run("resumed", ckpt_path=tmp_path / "whole" / "epoch=0.ckpt")
    assert resumed_removed == removed
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    finds("exact")
