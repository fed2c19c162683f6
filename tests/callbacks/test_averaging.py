"""Running averages beside pruning, against averages made by hand, by name, from the weights of the same run."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lit_prune import load
from lit_prune.errors import LitPruneError
from lit_prune.healing import attached_lora
from lit_prune.surgery import removed_sublayers
from tests.callbacks.test_sublayer_prune import OwnModule, loaders, module, pruning, trainer
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
DECAY = 0.8


class ByHand(L.Callback):
    """Both averages; `parameters` alone, since tied or constant tensors average to themselves."""

    def __init__(self):
        self.moving, self.sum, self.number = {}, {}, 0

    def on_fit_start(self, trainer, pl_module):
        self.moving = self.weights(pl_module)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch >= 1:
            now = self.weights(pl_module)
            self.sum = {name: self.sum.get(name, 0) + each for name, each in now.items()}
            self.number += 1

    def on_train_batch_end(self, trainer, pl_module, *_):
        now = self.weights(pl_module)
        if trainer.global_step == 1:
            self.moving = now  # torch's average begins with the first weights that it is given
        else:
            self.moving = {name: DECAY * self.moving[name] + (1 - DECAY) * each for name, each in now.items()}

    @staticmethod
    def weights(module):
        return {name: each.detach().double() for name, each in module.named_parameters()}


class AtTheEnd(L.Callback):
    """Weights behind the averaging callback's last word, ahead of merging."""

    def on_train_end(self, trainer, pl_module):
        self.weights = ByHand.weights(pl_module)


def averaging(name):
    if name == "moving":
        return EMAWeightAveraging(decay=DECAY)
    return StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2, annealing_epochs=1)


@pytest.mark.parametrize("healing", [False, True])
@pytest.mark.parametrize("name", ["moving", "stochastic"])
def test_what_is_saved_is_the_average_of_what_was_left(tmp_path, name, healing):
    callback, by_hand, end = pruning(healing=healing, save_to="pruned"), ByHand(), AtTheEnd()
    model = module()
    trainer(tmp_path, callback, averaging(name), by_hand, end).fit(model, *loaders())
    assert len({step.epoch for step in callback.plan.steps}) == 3
    wanted = by_hand.moving if name == "moving" else {key: each / by_hand.number for key, each in by_hand.sum.items()}
    assert end.weights.keys() <= wanted.keys()
    for key, each in end.weights.items():
        assert torch.allclose(each, wanted[key], atol=1e-6), key
    assert set(removed_sublayers(model.model)) == set(callback.plan.removed)
    assert attached_lora(model.model) is None
    saved = load(tmp_path / "pruned").state_dict()
    assert all(torch.equal(each, saved[key]) for key, each in model.model.state_dict().items())


@pytest.mark.parametrize("name", ["moving", "stochastic"])
@pytest.mark.parametrize("healing", [False, True])
def test_a_training_goes_on_from_a_checkpoint(tmp_path, name, healing):
    def run(folder, **options):
        callback, model = pruning(healing=healing), module()
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        trainer(tmp_path, callback, averaging(name), keep).fit(model, *loaders(), **options)
        return callback.plan.removed, model.model.state_dict()

    removed, whole = run("whole")
    again, resumed = run("again", ckpt_path=tmp_path / "whole/epoch=1.ckpt", weights_only=False)
    assert again == removed
    assert all(torch.equal(each, resumed[key]) for key, each in whole.items())


class Averages(OwnModule):
    """A user's module that averages its own model, and keeps a teacher."""

    def __init__(self):
        super().__init__("llama")
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.teacher = tiny_model("llama")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=1e-3)

    def on_train_batch_end(self, *_):
        self.average.update_parameters(self.net)


def test_an_average_in_the_module_loses_what_the_model_loses_and_a_teacher_nothing(tmp_path):
    def run(folder, **options):
        model, callback, by_hand = Averages(), pruning(model="net.lm"), ByHand()
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        with pytest.warns(UserWarning, match="another copy of the model at 'teacher', which stays as it is"):
            trainer(tmp_path, callback, by_hand, keep).fit(model, *loaders(), **options)
        return model, callback.plan.removed, by_hand.moving

    model, removed, by_hand = run("whole")
    assert len(removed) > 1
    assert set(removed_sublayers(model.average.module["lm"])) == set(removed)
    for name, each in model.net.named_parameters():
        found = model.average.module.get_parameter(name)
        assert torch.allclose(found.double(), by_hand[f"net.{name}"], atol=1e-6), name
        assert not torch.equal(found, each)
    dense = tiny_model("llama").state_dict()
    assert all(torch.equal(each, dense[name]) for name, each in model.teacher.state_dict().items())
    again, found, _ = run("again", ckpt_path=tmp_path / "whole/epoch=1.ckpt")
    assert found == removed
    expected = model.state_dict()
    assert all(torch.equal(each, expected[name]) for name, each in again.state_dict().items())


class Holds(L.Callback):
    """A user's callback, with an average of its own."""

    def on_fit_start(self, trainer, pl_module):
        self.average = AveragedModel(pl_module.net)


def test_a_model_and_its_average_are_one_model(tmp_path):
    model = Averages()
    del model.teacher
    trainer(tmp_path, callback := pruning(), holds := Holds()).fit(model, *loaders())
    for each in (model, holds):
        assert set(removed_sublayers(each.average.module["lm"])) == set(callback.plan.removed) != set()
    with pytest.raises(LitPruneError, match="AveragedModel at 'average.module.lm' has copied the model without"):
        trainer(tmp_path, pruning(healing=True)).fit(model, *loaders())
    with pytest.raises(LitPruneError, match="AveragedModel averages weights from before and after compensate='scale'"):
        trainer(tmp_path, pruning(compensate="scale")).fit(model, *loaders())


def test_what_averages_cannot_follow_is_refused_at_once(tmp_path):
    def fit(*callbacks):
        trainer(tmp_path, *callbacks).fit(module(), *loaders())

    with pytest.raises(LitPruneError, match="EMAWeightAveraging copies the model before SublayerPruneCallback"):
        fit(EMAWeightAveraging(), pruning())
    with pytest.raises(LitPruneError, match="from before and after compensate='scale'"):
        fit(pruning(compensate="scale"), averaging("stochastic"))
    with pytest.raises(LitPruneError, match="from before and after distill"):
        fit(pruning(healing=True, distill=True), EMAWeightAveraging())
