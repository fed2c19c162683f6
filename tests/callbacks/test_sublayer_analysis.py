"""The analysis within a training: of the right model at the right time, and the training goes on as it was."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lit_prune.callbacks import SublayerAnalysisCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lit_prune.errors import DataError, LitPruneError
from lit_prune.evaluation import analyse
from lit_prune.measure import WhatIf
from tests.callbacks.test_sublayer_prune import VAL, Losses, loaders, module, pruning, trainer
from tests.tiny import tiny_model

BATCHES = list(DataLoader(VAL, batch_size=4))
PICTURES = {"norms", "similarity", "logit_lens", "unraveled"}


def looking(**options):
    return SublayerAnalysisCallback(**{"impact": False, "progress": False, **options})


def close(found, expected):
    for part in ("sublayers", "depths", "paths"):
        for one, other in zip(getattr(found, part), getattr(expected, part), strict=True):
            assert one.name == other.name
            numbers = [[value for value in vars(each).values() if isinstance(value, float)] for each in (one, other)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-5)


def test_before_training_and_after_every_epoch_in_which_something_went(tmp_path):
    callback, prune, model = looking(impact=True), pruning(schedule=1, amount=None, every_n_epochs=2), module()
    trainer(tmp_path, callback, prune, max_epochs=4).fit(model, *loaders())
    assert [each.model for each in callback.analyses] == ["start", "epoch 0", "epoch 2"]
    assert [len(each.sublayers) for each in callback.analyses] == [8, 7, 6]
    close(callback.analyses[0], analyse(WhatIf(tiny_model("llama"), BATCHES)))
    data = json.loads((tmp_path / "analysis/analysis.json").read_text())
    assert [each["model"] for each in data["models"]] == ["start", "epoch 0", "epoch 2"]
    assert {each.stem for each in (tmp_path / "analysis").glob("*.png")} == PICTURES | {"impact"}


def test_the_last_epoch_s_figures_are_those_of_the_trained_model(tmp_path):
    callback, model = looking(every_n_epochs=2), module()
    trainer(tmp_path, callback, max_epochs=2).fit(model, *loaders())
    assert [each.model for each in callback.analyses] == ["start", "epoch 1"]
    close(callback.analyses[1], analyse(WhatIf(model.model, BATCHES), impact=False))
    assert callback.analyses[1].loss != callback.analyses[0].loss


def test_without_a_change_there_is_the_first_alone(tmp_path):
    callback = looking(num_batches=1)
    trainer(tmp_path, callback, max_epochs=2).fit(module(), *loaders())
    (found,) = callback.analyses
    close(found, analyse(WhatIf(tiny_model("llama"), BATCHES[:1]), impact=False))


@pytest.fixture
def no_pictures(monkeypatch):
    """They are drawn in half a second each, and this test is not of them."""
    monkeypatch.setattr("lit_prune.report.analyses.analysis_figures", lambda analyses: {})


@pytest.mark.usefixtures("no_pictures")
def test_training_goes_on_as_it_was(tmp_path):
    seen = []
    for callbacks in ([], [looking(every_n_epochs=1, impact=True)]):
        torch.manual_seed(0)
        losses = Losses()
        shuffled = DataLoader(loaders()[0].dataset, batch_size=4, shuffle=True)
        trainer(tmp_path, *callbacks, pruning(), losses).fit(module(), shuffled, loaders()[1])
        seen.append(losses.seen)
    assert seen[0] == seen[1]


def test_pictures_and_numbers_are_logged(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    callback = looking()
    trainer(tmp_path, callback, pruning(), logger=logger, max_epochs=2).fit(module(), *loaders())
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {f"analysis/{each}" for each in PICTURES} <= set(events.Tags()["images"])
    assert [each.step for each in events.Images("analysis/norms")] == [0, 3, 6]
    shares = [events.Scalars(f"analysis/share_{each}")[0].value for each in ("attention", "mlp", "embedding")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    own = [each.similarity for each in callback.analyses[-1].sublayers if each.name.startswith("mlp")]
    assert events.Scalars("analysis/similarity_mlp")[-1].value == pytest.approx(sum(own) / len(own), abs=1e-6)
    assert (tmp_path / "lightning_logs/version_0/analysis/norms.png").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_keeps_what_was_found_of_the_dense_model(tmp_path):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
    first = looking()
    trainer(tmp_path, first, pruning(), keep).fit(module(), *loaders())
    resumed = looking()
    trainer(tmp_path / "again", resumed, pruning()).fit(module(), *loaders(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert [each.model for each in resumed.analyses] == [each.model for each in first.analyses]
    assert resumed.analyses[0] == first.analyses[0]
    close(resumed.analyses[-1], first.analyses[-1])


@pytest.mark.usefixtures("no_pictures")
def test_in_mixed_precision_and_with_adapters(tmp_path):
    callback = looking()
    trainer(tmp_path, callback, pruning(healing=True), precision="bf16-mixed").fit(module(), *loaders())
    last = callback.analyses[-1]
    assert sum(each.logit for each in last.paths) == pytest.approx(last.logit, rel=0.03)


def test_what_cannot_be_is_refused_before_any_work(tmp_path):
    with pytest.raises(LitPruneError, match="every_n_epochs is 1 or more"):
        looking(every_n_epochs=0)
    losses = Losses()
    with pytest.raises(DataError, match="the trainer has none"):
        trainer(tmp_path, looking(), losses).fit(module(), loaders()[0])
    assert losses.seen == []
