"""`LIT_PRUNE` prunes the training of a script that does not know of lit-prune."""

import subprocess
import sys

import lightning as L
import pytest
from lit_prune.callbacks import SublayerPruneCallback

from lit_prune import load
from lit_prune.errors import LitPruneError
from lit_prune.healing import HealingSettings, LoraHealing, heal
from lit_prune.surgery import removed_sublayers
from tests.callbacks.test_sublayer_prune import OwnModule, loaders
from tests.tiny import tiny_model


def trainer(path, **options):
    return L.Trainer(
        default_root_dir=path, max_epochs=2, accelerator="cpu", devices=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def test_a_script_is_pruned_without_a_changed_line(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PRUNE", "0.2")
    module = OwnModule("llama")
    trainer(tmp_path).fit(module, *loaders())
    assert (gone := removed_sublayers(module.net["lm"]))
    assert removed_sublayers(load(tmp_path / "pruned")) == gone


def test_options_are_those_of_the_callback_and_a_word_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PRUNE", "{amount: 0.1, save_to: null, progress: false}")
    (callback,) = [each for each in trainer(tmp_path).callbacks if isinstance(each, SublayerPruneCallback)]
    assert (callback.save_to, callback.progress) == (None, False)
    for value in ("much", "{amuont: 0.1}", "[0.2]", "{"):
        monkeypatch.setenv("LIT_PRUNE", value)
        with pytest.raises(LitPruneError, match="LIT_PRUNE=.* is neither a share"):
            trainer(tmp_path)


def test_without_it_nothing_is_added_and_nothing_imported(tmp_path, monkeypatch):
    monkeypatch.delenv("LIT_PRUNE", raising=False)
    assert not any(isinstance(each, SublayerPruneCallback) for each in trainer(tmp_path).callbacks)
    asks = "from lit_prune.loading.environment import callbacks; assert callbacks() == []"
    script = f"import sys; {asks}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_healing_is_left_alone(tmp_path, monkeypatch):
    model = tiny_model("llama")
    windows = next(iter(loaders()[0]))["input_ids"]
    monkeypatch.setenv("LIT_PRUNE", "0.2")
    heal(
        model,
        windows,
        windows,
        lora=LoraHealing(rank=2),
        settings=HealingSettings(tokens=64),
        accelerator="cpu",
        progress=False,
    )
    assert removed_sublayers(model) == ()
