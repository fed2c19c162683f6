"""The callback beside what users combine it with: what only changes how a training is run changes no drop, no loss."""

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping, ModelCheckpoint, ModelPruning
from lightning.pytorch.tuner import Tuner
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, IterableDataset

from lit_prune import LitCausalLM, LoraHealing, load
from lit_prune.errors import LitPruneError
from lit_prune.surgery import removed_sublayers
from tests.callbacks.test_sublayer_prune import TRAIN, VAL, Losses, loaders, module, pruning, trainer
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Stream(IterableDataset):
    """A data set without a length."""

    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


class OwnModule(L.LightningModule):
    """A user's, whose model is compiled or wrapped already."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(**batch, labels=batch["input_ids"]).loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("loss", self.net(**batch, labels=batch["input_ids"]).loss)

    def configure_optimizers(self):
        trained = [each for each in self.parameters() if each.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)


class Text(L.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self):
        return DataLoader(TRAIN, batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(VAL, batch_size=4)


def fit(folder, model=None, data=None, *, options=None, **settings):
    """Drops with the loss they saw, and the losses of training; all of it on the first step's precision."""
    callback, losses = pruning(**{"compensate": "none", **(options or {})}), Losses()
    model = module() if model is None else model
    trainer(folder, callback, losses, **settings).fit(model, *(data or loaders()))
    return callback, losses.seen


def assert_same(found, expected):
    (callback, losses), (other, wanted) = found, expected
    steps, others = ([(each.removed.name, each.epoch) for each in one.plan.steps] for one in (callback, other))
    assert steps == others
    assert [each.nll_after for each in callback.plan.steps] == pytest.approx(
        [each.nll_after for each in other.plan.steps], abs=1e-5
    )
    assert [loss for _, loss, _ in losses] == pytest.approx([loss for _, loss, _ in wanted], abs=1e-4)


WITHOUT_EFFECT = {
    "gradient checkpointing": lambda: {"model": module(gradient_checkpointing=True)},
    "val_check_interval=0.34": lambda: {"val_check_interval": 0.34},
    "check_val_every_n_epoch=2": lambda: {"check_val_every_n_epoch": 2},
    "two validation loaders": lambda: {
        "data": (
            DataLoader(TRAIN, batch_size=4),
            [DataLoader(VAL[:4], batch_size=4), DataLoader(VAL[4:], batch_size=2)],
        )
    },
    "iterable data": lambda: {"data": [DataLoader(Stream(each), batch_size=4) for each in (TRAIN, VAL)]},
    "iterable data, val_check_interval=2": lambda: {
        "data": [DataLoader(Stream(each), batch_size=4) for each in (TRAIN, VAL)],
        "val_check_interval": 2,
    },
    "overfit_batches": lambda: {"overfit_batches": 3, "data": (DataLoader(TRAIN, batch_size=4), loaders()[1])},
    "barebones": lambda: {"barebones": True},
    "inference_mode=False": lambda: {"inference_mode": False},
    "detect_anomaly": lambda: {"detect_anomaly": True},
    "reload_dataloaders_every_n_epochs=1": lambda: {"reload_dataloaders_every_n_epochs": 1},
    "num_sanity_val_steps=-1": lambda: {"num_sanity_val_steps": -1},
    "max_steps": lambda: {"max_steps": 9, "max_epochs": -1, "options": {"num_epochs": 3}},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_changes_no_number_changes_no_drop(tmp_path, plain, name):
    assert_same(fit(tmp_path, **WITHOUT_EFFECT[name]()), plain)


def small_model():
    """Two blocks: tracing takes its time for every block and structure."""
    return tiny_model("llama", num_hidden_layers=2).train()


def small_module():
    return LitCausalLM(small_model(), learning_rate=1e-3)


def compiled_in_place():
    module = small_module()
    module.model.compile(backend="eager")
    return module


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 compiles guards that name what is not there")
@pytest.mark.parametrize("compiled", [
    pytest.param(compiled_in_place, id="model.compile()"),
    pytest.param(lambda: torch.compile(small_module(), backend="eager"),
                 id="torch.compile(module)", marks=pytest.mark.slow),
    pytest.param(lambda: OwnModule(torch.compile(small_model(), backend="eager")),
                 id="self.net = torch.compile(model)", marks=pytest.mark.slow),
])  # fmt: skip
def test_compiled_it_drops_the_same(tmp_path, compiled):
    torch._dynamo.reset()
    settings = {"max_epochs": 2, "options": {"schedule": 1}}
    expected = fit(tmp_path, small_module(), **settings)
    found = fit(tmp_path, compiled(), **settings)
    assert len(found[0].plan.steps) == 2
    assert_same(found, expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_mixed_precision_scores_in_it(tmp_path, plain, precision):
    callback, losses = fit(tmp_path, precision=precision)
    other, wanted = plain
    assert len(callback.plan.steps) == len(other.plan.steps)
    # Close enough to be the same model, and not the same numbers.
    assert callback.plan.steps[0].nll_before == pytest.approx(other.plan.steps[0].nll_before, abs=0.05)
    assert callback.plan.steps[0].nll_before != other.plan.steps[0].nll_before
    assert losses[0][1] == pytest.approx(wanted[0][1], abs=0.05)


class Adapters(L.Callback):
    """What the adapters' A hold before the first step, and after every epoch."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append({name: each.clone() for name, each in pl_module.named_parameters() if "lora_A" in name})

    def on_train_epoch_end(self, trainer, pl_module):
        self.on_train_start(trainer, pl_module)


def test_half_precision_trains_adapters_in_float32_and_a_checkpoint_keeps_them_so(tmp_path):
    def run(keep, **options):
        torch.manual_seed(0)
        adapters, model = Adapters(), LitCausalLM(tiny_model("llama"), learning_rate=1e-4)
        callbacks = (
            pruning(schedule=1, healing=LoraHealing(rank=4)),
            adapters,
            ModelCheckpoint(keep, "{epoch}", save_top_k=-1),
        )
        trainer(tmp_path, *callbacks, precision="bf16-true", max_epochs=2).fit(model, *loaders(), **options)
        return adapters.seen

    first, middle, last = run(tmp_path / "whole")
    for before, after in ((first, middle), (middle, last)):
        assert all(each.dtype == torch.float32 and (each != before[name]).all() for name, each in after.items())
    begun, ended = run(tmp_path / "again", ckpt_path=tmp_path / "whole/epoch=0.ckpt")
    for found, expected in ((begun, middle), (ended, last)):
        assert all(torch.equal(each, found[name]) for name, each in expected.items())


class Thaw(BaseFinetuning):
    """Trains the embedding from the second epoch on."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net.model.embed_tokens)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch > 1:  # Lightning freezes it anew when a run is resumed
            self.make_trainable(pl_module.net.model.embed_tokens)
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.model.embed_tokens, optimizer)


class OfAll(OwnModule):
    """With an optimizer that keeps one history of all parameters."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2)


@pytest.mark.parametrize("order", [1, -1], ids=["thawing first", "pruning first"])
@pytest.mark.parametrize("make", [OwnModule, OfAll], ids=["adamw", "lbfgs"])
def test_who_keeps_parameters_or_their_names_resumes_as_without_pruning(tmp_path, make, order):
    def run(folder, **options):
        model, callback = make(tiny_model("llama").train()), pruning(schedule=1)
        callbacks = [*([Thaw()] if make is OwnModule else []), callback][::order]
        keep = ModelCheckpoint(tmp_path / folder, "{epoch}", save_top_k=-1)
        trainer(tmp_path, *callbacks, keep).fit(model, *loaders(), **options)
        return callback.plan.removed, model.state_dict()

    (removed, whole), (again, resumed) = run("whole"), run("again", ckpt_path=tmp_path / "whole/epoch=1.ckpt")
    assert again == removed
    assert len(removed) == 3
    assert all(torch.equal(each, resumed[name]) for name, each in whole.items())


def test_tuners_prune_nothing_and_the_fit_behind_them_is_as_before(tmp_path, plain):
    callback, losses, model = pruning(compensate="none"), Losses(), module()
    run = trainer(tmp_path, callback, losses)
    model.learning_rate = 1e-3
    Tuner(run).lr_find(model, *loaders(), num_training=5)
    assert not removed_sublayers(model.model)
    run.fit(model, *loaders())
    assert_same((callback, losses.seen), plain)


def test_a_batch_size_is_found_for_the_whole_model(tmp_path, plain):
    callback, losses, model, data = pruning(compensate="none"), Losses(), module(), Text()
    run = trainer(tmp_path, callback, losses)
    assert Tuner(run).scale_batch_size(model, datamodule=data, max_trials=2, steps_per_trial=1) == 4
    assert not removed_sublayers(model.model)
    run.fit(model, data)
    assert_same((callback, losses.seen), plain)


def test_tied_embeddings_stay_tied(tmp_path):
    model = LitCausalLM(tiny_model("llama", tie_word_embeddings=True), learning_rate=1e-3)
    callback, _ = fit(tmp_path, model, options={"save_to": "pruned"})
    pruned = load(tmp_path / "pruned")
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    left = callback.plan.model.num_parameters - callback.plan.num_removed_parameters
    assert sum(each.numel() for each in pruned.parameters()) == left


def test_adapters_of_the_user_are_trained_and_go_with_their_sublayers(tmp_path):
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    before = {name: each.clone() for name, each in adapted.named_parameters()}
    callback, _ = fit(tmp_path, OwnModule(adapted))
    gone = {(each.block, {"attention": "self_attn", "mlp": "mlp"}[each.kind]) for each in removed_sublayers(adapted)}
    assert gone
    assert len(gone) == len(callback.plan.removed)
    left = dict(adapted.named_parameters())
    for name, value in before.items():
        taken = any(f"layers.{block}.{kind}." in name for block, kind in gone)
        assert (name in left) == (not taken) or "layernorm" in name
        if name in left:
            assert torch.equal(left[name], value) == ("lora_" not in name), name


def test_weights_that_lightning_prunes_are_zero_in_what_is_saved(tmp_path):
    callback, masks, model = pruning(save_to="pruned"), ModelPruning("l1_unstructured", amount=0.3), module()
    trainer(tmp_path, callback, masks, max_epochs=2).fit(model, *loaders())
    weights = load(tmp_path / "pruned").state_dict()
    assert callback.plan.removed
    assert sum((each == 0).sum().item() for each in weights.values()) > 0.2 * sum(map(torch.numel, weights.values()))
    assert all(torch.equal(each, weights[name]) for name, each in model.model.state_dict().items())


def stopping():
    return EarlyStopping("val_ppl")


@pytest.mark.parametrize(
    ("make", "options", "settings", "warns"),
    [
        (lambda: ModelCheckpoint(monitor="val_loss"), {}, {}, True),
        (stopping, {}, {}, True),
        (stopping, {"amount": None, "schedule": 1}, {"max_epochs": -1, "max_steps": 9}, True),
        (ModelCheckpoint, {}, {}, False),
        (lambda: ModelCheckpoint(monitor="val_loss", save_top_k=-1), {}, {}, False),
        (lambda: ModelCheckpoint(monitor="step", mode="max"), {}, {}, False),
        (stopping, {"schedule": 0.2}, {}, False),
        (stopping, {"schedule": lambda epoch: 2 * (epoch == 0)}, {}, False),
        (stopping, {"every_n_epochs": 9}, {}, False),
        (stopping, {}, {"check_val_every_n_epoch": 3}, False),
    ],
)
def test_monitors_that_compare_models_of_different_sizes_are_named_once(tmp_path, make, options, settings, warns):
    prune, model = pruning(**options), module()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        prune.setup(trainer(tmp_path, prune, make(), **settings), model, "fit")
    found = [str(each.message) for each in seen if "models of different sizes" in str(each.message)]
    assert [each.partition("(monitor='val_")[0] for each in found] == [type(make()).__name__] * warns


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_processes_that_would_keep_the_pruned_model_are_refused(tmp_path, strategy):
    run, model = trainer(tmp_path, pruning(), strategy=strategy, devices=1), module()
    model.on_train_start = (tmp_path / "trained").touch
    with pytest.raises(LitPruneError, match="your own model would stay as it is.*use strategy='ddp'"):
        # A process that is spawned takes seconds to import everything.
        run.fit(model, *loaders()) if strategy == "ddp_fork" else run.callbacks[0].setup(run, model, "fit")
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize("options", [{"healing": True}, {"compensate": "scale"}])
def test_masks_and_what_is_folded_into_weights_do_not_go_together(tmp_path, options):
    model = module()
    with pytest.raises(LitPruneError, match="ModelPruning computes every weight anew"):
        trainer(tmp_path, ModelPruning("l1_unstructured", amount=0.3), pruning(**options)).fit(model, *loaders())
    assert not removed_sublayers(model.model)
