"""What sublayers are scored by, against the module's own loss, computed by hand on what its hooks make of batches."""

import copy
import math
import warnings

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from transformers import AutoModelForSequenceClassification

from lit_prune.errors import DataError, LitPruneError
from lit_prune.surgery import mute
from tests import naive
from tests.callbacks.test_sublayer_prune import TRAIN, VAL, Losses, loaders, module, pruning, trainer
from tests.tiny import NUM_BLOCKS, tiny_model


def shifted(examples):
    return [{"input_ids": each["input_ids"][:-1], "labels": each["input_ids"][1:]} for each in examples]


def shifted_loaders():
    return DataLoader(shifted(TRAIN), batch_size=4), DataLoader(shifted(VAL), batch_size=4)


def loss_of(model, batch):
    """Of labels that are shifted already."""
    return F.cross_entropy(model(batch["input_ids"]).logits.flatten(0, 1), batch["labels"].flatten())


class Shifting(L.LightningModule):
    """A user's, in nanoGPT's style; `tell` says how it reports its loss, and it collects what it likes."""

    def __init__(self, tell="returned"):
        super().__init__()
        self.net, self.tell, self.collected, self.count = tiny_model("llama").train(), tell, [], 0
        self.metric = MeanMetric()

    def training_step(self, batch, batch_idx):
        return loss_of(self.net, batch)

    def validation_step(self, batch, batch_idx):
        loss = loss_of(self.net, batch)
        self.collected.append(loss.item())
        self.count += 1
        self.metric.update(loss)
        if self.tell == "logged":
            self.log("my_loss", loss)
        if self.tell == "logged together":
            self.log_dict({"loss": loss, "accuracy": 0.5, "aux_loss": 0.1})
        if self.tell == "a metric":
            self.log("val_loss", self.metric)
        return {"returned": loss, "a dict": {"loss": loss, "logits": torch.ones(3)}}.get(self.tell)

    def on_validation_epoch_end(self):
        self.log("collected", sum(self.collected) / len(self.collected))
        self.log("all", self.metric.compute())
        self.log("number", float(self.count))
        self.metric.reset()
        self.collected.clear()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tell", ["returned", "a dict", "logged", "logged together", "a metric"])
def test_another_loss_is_told_with_both_figures_and_asking_leaves_no_trace(tmp_path, tell):
    model, callback = Shifting(tell), pruning(amount=None, schedule=lambda epoch: 0)
    batch = next(iter(shifted_loaders()[1]))
    dense = tiny_model("llama")
    with torch.no_grad():
        own = loss_of(dense, batch).item()
        again = dense(batch["input_ids"], labels=batch["labels"]).loss.item()  # shifted once more by transformers
    with pytest.warns(UserWarning, match=rf"a loss of {own:.4f} .* by another, {again:.4f}: .*loss='module'"):
        found = logged(tmp_path, model, callback)
    assert found == logged(tmp_path, Shifting(tell))


def logged(tmp_path, model, *callbacks):
    run = trainer(tmp_path, *callbacks, max_epochs=2, num_sanity_val_steps=0)
    run.fit(model, *shifted_loaders())
    return {name: value.item() for name, value in run.callback_metrics.items()}


@pytest.mark.filterwarnings("ignore:Encountered `nan` values in tensor")
def test_by_the_modules_own_loss_the_same_goes_as_by_hand(tmp_path):
    callback = pruning(amount=None, schedule=1, loss="module", scorer="ppl")
    silent = [{**each, "labels": torch.full_like(each["labels"], -100)} for each in shifted(VAL[:4])]
    batches = [*shifted_loaders()[1], *DataLoader(silent, batch_size=4)]  # of four, two and none to count
    trainer(tmp_path, callback, max_epochs=1).fit(
        Shifting(), shifted_loaders()[0], DataLoader(batches, batch_size=None)
    )
    dense = tiny_model("llama")

    def mean(*gone):
        with torch.no_grad(), naive.zeroed(dense, "llama", gone):
            sums = [loss_of(dense, each) * each["labels"].numel() for each in batches[:2]]
        return (sum(sums) / sum(each["labels"].numel() for each in batches[:2])).item()

    (step,) = callback.plan.steps
    losses = {f"{kind}.{block}": mean((kind, block)) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")}
    assert step.nll_before == pytest.approx(mean(), abs=1e-5)
    assert step.removed.name == min(losses, key=losses.get)
    assert step.nll_after == pytest.approx(losses[step.removed.name], abs=1e-5)
    assert step.scores == pytest.approx({name: math.exp(each) for name, each in losses.items()}, rel=1e-4)


def test_where_both_losses_are_one_the_same_goes_by_either(tmp_path):
    steps = []
    for options in ({}, {"loss": "module"}):
        callback = pruning(search="lazy", **options)
        trainer(tmp_path, callback).fit(module(), *loaders())
        steps.append([(each.removed.name, each.epoch, round(each.nll_after, 5)) for each in callback.plan.steps])
    assert steps[0] == steps[1]


class Silent(Shifting):
    def validation_step(self, batch, batch_idx):
        self.log("accuracy", 0.5)

    def on_validation_epoch_end(self):
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, DataError, "validation_step of Silent, which tells of no loss: let it return"),
        ({"scorer": "taylor"}, LitPruneError, "wants gradients, and loss='module' gives none"),
    ],
)
def test_what_has_no_such_loss_is_refused_before_training(tmp_path, options, error, message):
    losses = Losses()
    with pytest.raises(error, match=message):
        trainer(tmp_path, pruning(loss="module", **options), losses).fit(Silent(), *shifted_loaders())
    assert not losses.seen
    with pytest.raises(LitPruneError, match="loss is one of tokens and module; found 'modul'"):
        pruning(loss="modul")


class Hooks:
    """Of a module or a data module: batches come as tuples, with every token one too low, twice."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        assert self.trainer.training or self.trainer.validating or self.trainer.sanity_checking
        return {"input_ids": batch[0]}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return {name: (each + 1).to(device) for name, each in batch.items()}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "input_ids": batch["input_ids"] + 1}


class HookedModule(Hooks, type(module())):
    pass


class HookedData(Hooks, L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader([(each["input_ids"] - 2,) for each in TRAIN], batch_size=4)

    def val_dataloader(self):
        return DataLoader([(each["input_ids"] - 2,) for each in VAL], batch_size=4)

    test_dataloader = val_dataloader


@pytest.mark.parametrize("where", ["module", "data module"])
def test_hooks_that_transfer_batches_reach_the_scoring(tmp_path, where):
    callback, data = pruning(amount=None, schedule=1), HookedData()
    if where == "module":
        own, given = HookedModule(tiny_model("llama")), {
            "train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()
        }  # fmt: skip
    else:
        own, given = module(), {"datamodule": data}
    trainer(tmp_path, callback, max_epochs=1).fit(own, **given)
    batches = [{"input_ids": torch.stack([each["input_ids"] for each in VAL])}]
    assert callback.plan.steps[0].nll_before == pytest.approx(naive.mean_loss(tiny_model("llama"), batches), abs=1e-5)


class Reward(L.LightningModule):
    """A user's reward model: numbers for whole sequences."""

    def __init__(self):
        super().__init__()
        config = tiny_model("llama").config
        config.num_labels, config.problem_type = 1, "regression"
        torch.manual_seed(4)
        self.reward = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for each in self.reward.parameters():
                each.normal_(std=0.2) if each.ndim > 1 else None

    def loss_of(self, batch):
        return self.reward(**batch).loss

    def training_step(self, batch, batch_idx):
        return self.loss_of(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss_of(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("loss", ["tokens", "module"])
def test_a_reward_model_is_pruned_by_its_own_loss_with_its_head(tmp_path, loss):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 128, (4, 12), generator=generator)
    rows = [{"input_ids": each, "labels": torch.randn((), generator=generator)} for each in ids]
    callback, module = pruning(schedule=1, amount=None, save_to="pruned", loss=loss, compensate="none"), Reward()
    dense = copy.deepcopy(module.reward).eval()
    batch = {"input_ids": ids, "labels": torch.stack([each["labels"] for each in rows])}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="validation_step of")
        trainer(tmp_path, callback, max_epochs=2).fit(module, DataLoader(rows, 2), DataLoader(rows, 2))
    gone = []
    for step in callback.plan.steps:
        with torch.no_grad(), mute(dense, gone):
            assert step.nll_before == pytest.approx(dense(**batch, use_cache=False).loss.item(), abs=1e-5)
        gone += step.removed.sublayers
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    assert torch.equal(read.score.weight, module.reward.score.weight)
    with torch.no_grad(), mute(dense, gone):
        assert torch.allclose(read(**batch, use_cache=False).logits, dense(**batch, use_cache=False).logits, atol=1e-5)
