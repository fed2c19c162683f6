"""Two `SublayerPruneCallback`s in one Trainer: shares of the first model, one checkpoint, one plan in the end."""

import csv

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lit_prune.callbacks import BeforeAfterCallback

from lit_prune import LitCausalLM, PrunePlan, apply_plan, load
from lit_prune.errors import LitPruneError
from lit_prune.surgery import removed_sublayers
from lit_prune.training import load_checkpoint
from tests.callbacks.test_sublayer_prune import VAL, Halt, Losses, loaders, module, pruning, trainer
from tests.tiny import tiny_model

BATCH = {"input_ids": torch.stack([each["input_ids"] for each in VAL])}


def attention(amount=0.1, **options):
    return pruning(**{"amount": amount, "granularity": "attention", "compensate": "none", **options})


def mlp(amount=0.2, **options):
    return pruning(**{"amount": amount, "granularity": "mlp", "compensate": "none", **options})


def kinds(plan):
    return {sublayer.kind for sublayer in plan.removed}


def test_each_takes_its_share_of_the_first_model(tmp_path):
    model = module()
    total = sum(each.numel() for each in model.model.parameters())
    one, other = attention(save_to="one"), mlp(save_to="other")
    trainer(tmp_path, one, other, logger=CSVLogger(tmp_path, name="log")).fit(model, *loaders())
    assert (kinds(one.plan), kinds(other.plan)) == ({"attention"}, {"mlp"})
    for plan, share in ((one.plan, 0.1), (other.plan, 0.2)):
        smallest = min(step.num_parameters for step in plan.steps)
        assert share * total <= plan.num_removed_parameters < share * total + smallest
        assert plan.model.num_parameters == total
    left = sum(each.numel() for each in model.model.parameters())
    assert left == total - one.plan.num_removed_parameters - other.plan.num_removed_parameters
    for folder in ("one", "other"):
        saved = tmp_path / "log/version_0" / folder
        plan = PrunePlan.load(saved)
        assert set(plan.removed) == set(removed_sublayers(load(saved))) == {*one.plan.removed, *other.plan.removed}
        assert [step.epoch for step in plan.steps] == sorted(step.epoch for step in plan.steps)
        assert apply_plan(tiny_model("llama"), plan, uncompensated=True).num_removed_parameters == total - left
    rows = list(csv.DictReader((tmp_path / "log/version_0/metrics.csv").read_text().splitlines()))
    told = {
        name: [float(row[name]) for row in rows if row[name]] for name in ("prune/parameters_left", "final/ppl_rise")
    }
    assert told["prune/parameters_left"][-1] == pytest.approx(left / total)
    assert len(told["final/ppl_rise"]) == 1
    named = (tmp_path / "log/version_0/hparams.yaml").read_text()
    assert "prune/attention/amount: 0.1" in named
    assert "prune/mlp/amount: 0.2" in named


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("healing", [False, True])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_last_bit(tmp_path, healing):
    def run(*extra, ckpt_path=None):
        L.seed_everything(1, verbose=False)
        mended = "none" if healing else None
        callbacks = attention(0.2, healing=healing, compensate=mended), mlp(compensate=mended)
        losses, model = Losses(), module()
        keeps = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{epoch}", enable_version_counter=False)
        fitted = trainer(tmp_path, *callbacks, losses, keeps, *extra, max_epochs=2)
        try:
            fitted.fit(model, *loaders(), ckpt_path=ckpt_path)
        except SystemExit:
            assert extra
        return callbacks, losses.seen, model

    run(Halt(1))
    path = tmp_path / "kept/epoch=0.ckpt"
    found, ends, resumed = run(ckpt_path=path)
    kept = torch.load(path, weights_only=True)["callbacks"]
    assert sum("SublayerPruneCallback" in name for name in kept) == 2
    expected, losses, whole = run()
    assert ends == [each for each in losses if each[0] == 1]
    assert [callback.plan.steps for callback in found] == [callback.plan.steps for callback in expected]
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    exported, plan = load_checkpoint(tmp_path / "kept/epoch=1.ckpt", tmp_path / "dense")
    assert set(plan.removed) == set(removed_sublayers(exported))


def test_the_first_heals_and_both_save_what_it_merged(tmp_path):
    one, other = attention(healing=True, distill=True, save_to="one"), mlp(save_to="other")
    model = module()
    report = BeforeAfterCallback(repeats=0)
    trainer(tmp_path, one, other, report, max_epochs=2).fit(model, *loaders())
    expected = model.model.eval()(**BATCH).logits
    for folder in ("one", "other"):
        torch.testing.assert_close(load(tmp_path / folder)(**BATCH).logits, expected)
    page = (tmp_path / "summary.md").read_text()
    assert all(step.removed.name in page for step in (*one.plan.steps, *other.plan.steps))


class Two(L.LightningModule):
    """Two models in one module."""

    def __init__(self):
        super().__init__()
        self.large, self.small = tiny_model("llama"), tiny_model("gpt2")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

    def training_step(self, batch, batch_idx):
        return self.large(**batch, labels=batch["input_ids"]).loss

    validation_step = training_step


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"model": "large"}, {"model": "small"}, "prune different models"),
        ({"model": "large", "max_rise": 0.1}, {"model": "large"}, "give amounts, no max_rise"),
        ({"model": "large"}, {"model": "large", "healing": True}, "only the first can heal"),
        ({"model": "large"}, {"model": "large", "compensate": "scale"}, "need the same compensate"),
        ({"model": "large", "save_to": "same"}, {"model": "large", "save_to": "same"}, "is about to save its model as"),
    ],
)
def test_what_two_cannot_do_together_is_refused_at_set_up(tmp_path, one, other, message):
    with pytest.raises(LitPruneError, match=message):
        trainer(tmp_path, attention(**one), mlp(**other)).fit(Two(), *loaders())


def test_two_of_one_granularity_are_refused_when_the_trainer_is_made(tmp_path):
    with pytest.raises(RuntimeError, match="state_key` must be unique"):
        trainer(tmp_path, mlp(), mlp())


def test_shares_of_another_unit_are_those_of_the_first_model_too(tmp_path):
    one, other = attention(0.2, of="kv_cache"), mlp(0.15, of="flops")
    trainer(tmp_path, one, other).fit(LitCausalLM(tiny_model("llama"), learning_rate=1e-3), *loaders())
    assert len(one.plan.removed) == 1  # a quarter of the cache
    assert one.plan.budget["reached"] / one.plan.budget["total"] == 0.25
    assert other.plan.budget["reached"] >= 0.15 * other.plan.budget["total"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_single_one_goes_on_with_a_state_of_the_earlier_name(tmp_path):
    keeps = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer(tmp_path, attention(0.2), keeps, max_epochs=2).fit(module(), *loaders())
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    (name,) = [name for name in checkpoint["callbacks"] if name.startswith("SublayerPruneCallback")]
    checkpoint["callbacks"] = {"SublayerPruneCallback": checkpoint["callbacks"][name]}
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    expected = PrunePlan.from_dict(checkpoint["callbacks"]["SublayerPruneCallback"]["plan"]).steps
    one = attention(0.2)
    trainer(tmp_path, one, max_epochs=2).fit(module(), *loaders(), ckpt_path=tmp_path / "earlier.ckpt")
    assert expected
    assert one.plan.steps[: len(expected)] == expected
    assert one.plan.num_removed_parameters < 0.3 * one.plan.model.num_parameters, "no more than was asked for"
