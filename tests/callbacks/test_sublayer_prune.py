"""The callback in real trainers: what is dropped when, what the optimizer holds, what a checkpoint gives back."""

import shutil

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lit_prune.callbacks import SublayerPruneCallback
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lit_prune import LitCausalLM, LoraHealing, load, prune
from lit_prune.errors import BudgetError, DataError, LitPruneError, MeasureError, ModelError
from lit_prune.pruning import compensate_plan
from lit_prune.surgery import removed_sublayers
from tests.tiny import NUM_BLOCKS, tiny_model

GENERATOR = torch.Generator().manual_seed(0)
TRAIN = [{"input_ids": torch.randint(3, 128, (16,), generator=GENERATOR)} for _ in range(12)]
VAL = [{"input_ids": torch.randint(3, 128, (16,), generator=GENERATOR)} for _ in range(6)]


def loaders():
    return DataLoader(TRAIN, batch_size=4), DataLoader(VAL, batch_size=4)


def module(architecture="llama", **options):
    return LitCausalLM(tiny_model(architecture), learning_rate=1e-3, **options)


def trainer(tmp_path, *callbacks, max_epochs=3, **options):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        **{**settings, "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks), **options},
    )


def pruning(**options):
    return SublayerPruneCallback(**{"amount": 0.2, "progress": False, **options})


class Losses(L.Callback):
    """Every training loss, and what was gone when it was computed."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        model = next(each for each in pl_module.modules() if isinstance(each, PreTrainedModel))
        self.seen.append((trainer.current_epoch, outputs["loss"].item(), len(removed_sublayers(model))))


def test_amount_alone_spreads_evenly_and_every_removal_is_trained_on(tmp_path):
    callback, losses, model = pruning(), Losses(), module()
    total = sum(each.numel() for each in model.model.parameters())
    trainer(tmp_path, callback, losses, max_epochs=4).fit(model, *loaders())
    gone = {epoch: count for epoch, _, count in losses.seen}
    removed = [sum(s.num_parameters for s in callback.plan.steps if s.epoch <= epoch) / total for epoch in range(4)]
    assert gone[0] >= 1
    assert all(share >= 0.2 * (epoch + 1) / 4 for epoch, share in enumerate(removed))
    assert gone[3] == len(callback.plan.removed) == len(removed_sublayers(model.model))
    left = sum(each.numel() for each in model.model.parameters())
    assert left == total - callback.plan.num_removed_parameters <= 0.8 * total


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_plan_is_dropped_in_its_order_epoch_by_epoch_and_nothing_is_scored(tmp_path):
    options = {"progress": False, "amount": 0.4, "search": "portfolio"}
    plan = prune(tiny_model("llama"), [{"input_ids": each["input_ids"][None]} for each in VAL], **options)
    file = plan.save(tmp_path / "plan.json")

    def run(*extra, ckpt_path=None):
        L.seed_everything(1, verbose=False)
        callback, losses, model = SublayerPruneCallback(plan=str(file), progress=False), Losses(), module()
        checkpoints = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{epoch}")
        with pytest.raises(SystemExit) if extra else _nothing():
            trainer(tmp_path, callback, losses, checkpoints, *extra).fit(model, *loaders(), ckpt_path=ckpt_path)
        return callback.plan, losses.seen

    run(Halt(2))
    resumed, ends = run(ckpt_path=tmp_path / "kept" / "epoch=1.ckpt")
    shutil.rmtree(tmp_path / "kept")
    found, losses = run()
    assert found.removed == resumed.removed == plan.removed
    assert ends == [each for each in losses if each[0] == 2]
    assert found.cost == 0
    assert len({step.epoch for step in found.steps}) == 3
    assert found.compensation["name"] == "refit"
    assert found.budget["reached"] == plan.num_removed_parameters


def test_a_search_for_a_whole_set_serves_one_drop(tmp_path):
    batches = [{"input_ids": torch.stack([each["input_ids"] for each in VAL[at : at + 2]])} for at in (0, 2, 4)]
    plan = prune(tiny_model("llama"), batches, amount=0.3, search="portfolio", progress=False)
    callback = pruning(amount=0.3, schedule=0.3, search="portfolio")
    trainer(tmp_path, callback, max_epochs=2).fit(module(), loaders()[0], DataLoader(VAL, batch_size=2))
    assert set(callback.plan.removed) == set(plan.removed)
    assert {step.epoch for step in callback.plan.steps} == {0}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"search": "lazy", "granularity": "block"}, LitPruneError, "leave out search, granularity, or the plan"),
        ({"amount": 0.9}, BudgetError, r"removes 2\d\.\d\d% of the parameters; amount=0.9 is more"),
        ({"of": "flops"}, BudgetError, "say how much of flops is to go"),
    ],
)
def test_what_a_plan_does_not_go_with_is_refused_at_once(tmp_path, options, error, message):
    file = prune(tiny_model("llama"), [{"input_ids": VAL[0]["input_ids"][None]}], amount=0.2, progress=False).save(
        tmp_path / "plan.json"
    )
    with pytest.raises(error, match=message):
        SublayerPruneCallback(plan=str(file), **options)


class Weights(L.Callback):
    """The weights that an epoch begins with."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 0 and batch_idx == 0:
            self.seen = {name: each.detach().clone() for name, each in pl_module.model.named_parameters()}


def test_weights_that_stay_are_refitted_on_training_text_before_training_goes_on(tmp_path):
    weights, model, again = Weights(), module(), tiny_model("llama")
    callback = pruning(schedule=2, amount=None, compensate="refit")
    trainer(tmp_path, callback, weights, max_epochs=1).fit(model, *loaders())
    order = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = torch.stack([TRAIN[index]["input_ids"] for index in order])
    found = compensate_plan(again, callback.plan, [{"input_ids": rows} for rows in tokens.split(4)], "refit")
    assert callback.plan.compensation["refitted"] == found.compensation["refitted"]
    expected = dict(again.named_parameters())
    assert all(torch.equal(each, expected[name]) for name, each in weights.seen.items())


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
@pytest.mark.parametrize(
    ("options", "extra", "reason"),
    [
        ({}, [], None),
        ({"healing": True, "distill": True}, [], None),
        ({}, [WeightAveraging()], "weights are averaged over the training"),
    ],
)
def test_by_default_weights_are_refitted_where_nothing_speaks_against_it(tmp_path, options, extra, reason):
    callback = pruning(**options)
    trainer(tmp_path, callback, *extra, max_epochs=2).fit(module(), *loaders())
    assert callback.plan.compensation["name"] == ("refit" if reason is None else "none")
    assert callback.plan.compensation.get("impossible") == reason


def test_refit_refuses_training_data_without_numbers_before_training(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(TRAIN)

    model, before = module(), tiny_model("llama").state_dict()
    with pytest.raises(DataError, match="draws training examples by their numbers"):
        trainer(tmp_path, pruning(compensate="refit"), max_epochs=2, limit_train_batches=2).fit(
            model, DataLoader(Stream(), batch_size=4), loaders()[1]
        )
    assert all(torch.equal(each, before[name]) for name, each in model.model.state_dict().items())


def test_a_lazy_search_begins_anew_in_every_epoch(tmp_path):
    model = LitCausalLM(tiny_model("llama", num_hidden_layers=12), learning_rate=1e-3)
    callback = pruning(amount=None, schedule=2, search="lazy", start_epoch=1)
    trainer(tmp_path, callback, max_epochs=3).fit(model, *loaders())
    first, second, third, _ = callback.plan.steps
    assert [step.epoch for step in callback.plan.steps] == [1, 1, 2, 2]
    assert len(first.measured) == len(first.scores) == 24
    assert len(second.measured) < len(second.scores)
    assert len(third.measured) == len(third.scores) == 22


@pytest.mark.parametrize("healing", [False, True])
def test_the_optimizer_forgets_what_went_and_keeps_the_rest(tmp_path, healing):
    class Check(L.Callback):
        before = None

        def on_train_epoch_end(self, trainer, pl_module):
            state = trainer.optimizers[0].state
            self.before = {each: state[each]["exp_avg"].clone() for each in state}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            optimizer = trainer.optimizers[0]
            held = {id(each) for group in optimizer.param_groups for each in group["params"]}
            own = {id(each) for each in pl_module.parameters() if each.requires_grad}
            assert held == own
            assert {id(each) for each in optimizer.state} <= own
            if batch_idx == 0 and self.before is not None:
                assert len(self.before) > len(own), "something went in between"
                assert optimizer.state.keys() == {each for each in self.before if id(each) in own}
                assert all(torch.equal(optimizer.state[each]["exp_avg"], self.before[each]) for each in optimizer.state)

    trainer(tmp_path, pruning(amount=0.35, healing=healing, schedule=1), Check()).fit(module(), *loaders())


def test_lora_is_attached_trained_and_merged(tmp_path):
    model = module()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append({name.split(".")[-2] for name, each in pl_module.named_parameters() if each.requires_grad})

        def on_train_end(self, trainer, pl_module):
            with torch.no_grad():
                self.logits = pl_module(VAL_BATCH)

    look = Look()
    trainer(tmp_path, pruning(healing=LoraHealing(rank=4)), look).fit(model, *loaders())
    assert set.union(*seen) == {"default"}, "adapters alone are trained"
    after = {name: each for name, each in model.model.state_dict().items() if each.numel()}
    assert not any("lora" in name or "base_layer" in name for name in after)
    assert set(after) < set(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all("proj" in name for name in changed), "linear layers of the blocks, and nothing else"
    assert all(each.requires_grad for each in model.model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(VAL_BATCH), look.logits, atol=1e-4, rtol=1e-4)


class Pairs(L.LightningModule):
    """A user's module in nanoGPT's style: a batch is a tuple of tokens and of the tokens that come next."""

    def __init__(self):
        super().__init__()
        self.lm = tiny_model("llama").train()

    def training_step(self, batch, _):
        tokens, following = batch
        logits = self.lm(input_ids=tokens).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())

    def validation_step(self, batch, number):
        self.log("loss", self.training_step(batch, number))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Adapted(Pairs):
    """With the tokens as the model takes them, the last of which a label has, too."""

    def batch_to_inputs(self, batch):
        return {"input_ids": torch.cat([batch[0], batch[1][:, -1:]], dim=1)}


def test_batches_of_another_form_by_an_adapter_of_the_module(tmp_path):
    def pairs(examples):
        return DataLoader([(each["input_ids"][:-1], each["input_ids"][1:]) for each in examples], batch_size=4)

    one, other = pruning(schedule=1, compensate="refit"), pruning(schedule=1, compensate="refit")
    trainer(tmp_path, one, max_epochs=1).fit(Adapted(), pairs(TRAIN), pairs(VAL))
    plain = LitCausalLM(tiny_model("llama"), learning_rate=1e-3)
    trainer(tmp_path, other, max_epochs=1).fit(plain, *loaders())
    assert one.plan.steps[0].scores == other.plan.steps[0].scores
    assert one.plan.compensation == other.plan.compensation != {}


@pytest.mark.filterwarnings("ignore:.*sublayers are scored by another:UserWarning")
def test_batches_of_another_form_as_the_validation_step_gives_them_to_the_model(tmp_path):
    def pairs(examples):
        return DataLoader([(each["input_ids"][:-1], each["input_ids"][1:]) for each in examples], batch_size=4)

    def cut(examples):
        return DataLoader([{"input_ids": each["input_ids"][:-1]} for each in examples], batch_size=4)

    one, other = pruning(schedule=1), pruning(schedule=1)
    trainer(tmp_path, one, max_epochs=1).fit(Pairs(), pairs(TRAIN), pairs(VAL))
    plain = LitCausalLM(tiny_model("llama"), learning_rate=1e-3)
    trainer(tmp_path, other, max_epochs=1).fit(plain, cut(TRAIN), cut(VAL))
    assert one.plan.steps[0].scores == other.plan.steps[0].scores

    class Silent(Pairs):
        def validation_step(self, batch, number):
            self.log("loss", 1.0)

    with pytest.raises(
        DataError, match=r"found a list; your validation_step gives the model none either, and a method"
    ):
        trainer(tmp_path, pruning(schedule=1), max_epochs=1).fit(Silent(), pairs(TRAIN), pairs(VAL))


VAL_BATCH = {"input_ids": torch.stack([each["input_ids"] for each in VAL])}


class OwnModule(L.LightningModule):
    """A user's module: another attribute, another optimizer, no idea of pruning."""

    def __init__(self, architecture="gpt2"):
        super().__init__()
        self.net = torch.nn.ModuleDict({"lm": tiny_model(architecture).train()})

    def training_step(self, batch, batch_idx):
        return self.net["lm"](input_ids=batch["input_ids"], labels=batch["input_ids"]).loss

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.net["lm"](input_ids=batch["input_ids"], labels=batch["input_ids"]).loss)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW([each for each in self.parameters() if each.requires_grad], lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(("make", "stops"), [(module, (1, 2, 3)), (OwnModule, (2,))])
@pytest.mark.parametrize(
    "mending",
    [{}, {"healing": True}, {"healing": True, "distill": True}, {"healing": True, "compensate": "refit"}],
    ids=", ".join,
)
def test_resume_gives_the_same_drops_and_losses_to_the_last_bit(tmp_path, make, mending, stops):
    def run(folder, *extra, ckpt_path=None):
        L.seed_everything(1, verbose=False)
        callback, losses, model = pruning(**mending), Losses(), make()
        checkpoints = ModelCheckpoint(tmp_path / folder, save_top_k=-1, filename="{epoch}")
        with pytest.raises(SystemExit) if extra and isinstance(extra[0], Halt) else _nothing():
            trainer(tmp_path, callback, losses, checkpoints, *extra, max_epochs=4).fit(
                model, *loaders(), ckpt_path=ckpt_path
            )
        return callback.plan, losses.seen, model

    plan, losses, model = run("whole")
    for epoch in stops:
        folder = f"halted{epoch}"
        run(folder, Halt(epoch))
        resumed_plan, resumed_losses, resumed = run(folder, ckpt_path=tmp_path / folder / f"epoch={epoch - 1}.ckpt")
        assert resumed_plan.removed == plan.removed
        assert [step.epoch for step in resumed_plan.steps] == [step.epoch for step in plan.steps]
        assert resumed_losses == [each for each in losses if each[0] >= epoch]
        ours, theirs = resumed.state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Halt(L.Callback):
    """Ends the process before an epoch's training, as a scheduler of jobs would."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise SystemExit


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def score_in(path):
    """The monitored value that ModelCheckpoint stored, of the validation that came before it."""
    callbacks = torch.load(path, weights_only=True)["callbacks"]
    return next(state for key, state in callbacks.items() if "ModelCheckpoint" in key)["current_score"].item()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("healing", [False, True])
def test_checkpoints_of_pruned_models_load_everywhere(tmp_path, healing):
    checkpoints = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", monitor="val_loss")
    fitted = trainer(tmp_path, pruning(healing=healing), checkpoints, max_epochs=2)
    fitted.fit(module(), *loaders())
    path = tmp_path / "epoch=1.ckpt"
    expected = score_in(path)
    again = LitCausalLM.load_from_checkpoint(path, model=tiny_model("llama", seed=9))
    assert removed_sublayers(again.model)
    for fresh, callbacks in ((again, ()), (module(), ()), (module(), (pruning(healing=healing),))):
        ckpt_path = None if fresh is again else path
        found = trainer(tmp_path, *callbacks).validate(fresh, loaders()[1], ckpt_path=ckpt_path, verbose=False)
        assert found[0]["val_loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_own_module_checkpoint_validates_with_the_callback(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", monitor="loss")
    trainer(tmp_path, pruning(healing=True), checkpoints, max_epochs=2).fit(OwnModule(), *loaders())
    path = tmp_path / "epoch=1.ckpt"
    expected = score_in(path)
    found = trainer(tmp_path, pruning(healing=True)).validate(OwnModule(), loaders()[1], ckpt_path=path, verbose=False)
    assert found[0]["loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:.*will compare models of different sizes")
@pytest.mark.parametrize("healing", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_live_model_goes_back_to_a_larger_checkpoint_and_on(tmp_path, own, healing):
    checkpoints = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", monitor="loss" if own else "val_loss")
    callback, model = pruning(healing=healing), OwnModule() if own else module()
    fitted = trainer(tmp_path, callback, checkpoints, max_epochs=3)
    fitted.fit(model, *loaders())
    for epoch in ("0", "2", "1", "best"):
        path = checkpoints.best_model_path if epoch == "best" else tmp_path / f"epoch={epoch}.ckpt"
        where = {"ckpt_path": "best" if epoch == "best" else path}
        found = fitted.validate(model, loaders()[1], **where, verbose=False)[0]
        assert found["loss" if own else "val_loss"] == pytest.approx(score_in(path), abs=1e-6)
        language_model = model.net["lm"] if own else model.model
        assert set(removed_sublayers(language_model)) == set(callback.plan.removed)
        assert not any("lora" in name for name, _ in language_model.named_parameters())
        language_model.save_pretrained(tmp_path / f"at-{epoch}")
        assert torch.equal(load(tmp_path / f"at-{epoch}").lm_head.weight, language_model.lm_head.weight)


@pytest.mark.filterwarnings("ignore:.*will compare models of different sizes")
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 0.5},
        {"limit_val_batches": 1},
        {"num_sanity_val_steps": 0},
        {"logger": "csv"},
        {"enable_progress_bar": True, "rich": True},
    ],
    ids=str,
)
def test_works_with_what_trainers_do(tmp_path, options, capsys):
    options = {**options, "logger": CSVLogger(tmp_path)} if "logger" in options else options
    callback = pruning(amount=0.15, progress=True)
    extras = [EarlyStopping("val_loss", patience=5), ModelCheckpoint(tmp_path / "best", monitor="val_loss")]
    options = dict(options)
    extras += [RichProgressBar()] if options.pop("rich", False) else []
    model = module(lr_schedule="linear", warmup_steps=2)
    trainer(tmp_path, callback, *extras, **options).fit(model, *loaders())
    assert callback.plan.num_removed_parameters >= 0.15 * callback.plan.model.num_parameters
    shown = capsys.readouterr().err
    assert 0 <= shown.find("epoch 0: scoring") < shown.find("epoch 0: compensating"), "a refit is no round of a search"


@pytest.mark.parametrize(
    ("options", "epochs_of_drops"),
    [
        ({"schedule": 1, "amount": None}, [0, 1, 2, 3]),
        ({"schedule": 1, "start_epoch": 1, "every_n_epochs": 2}, [1, 3]),
        ({"schedule": lambda epoch: 2 if epoch == 1 else 0, "amount": None}, [1, 1]),
        ({"amount": 0.1, "granularity": "block"}, [0]),
    ],
)
def test_schedules(tmp_path, options, epochs_of_drops):
    callback = pruning(**options)
    trainer(tmp_path, callback, max_epochs=4).fit(module(), *loaders())
    assert [step.epoch for step in callback.plan.steps] == epochs_of_drops


def test_kinds_and_protection(tmp_path):
    callback = pruning(amount=0.1, granularity="attention", protect=["attention.0"])
    trainer(tmp_path, callback).fit(module(), *loaders())
    assert {each.kind for each in callback.plan.removed} == {"attention"}
    assert set(callback.plan.steps[0].scores) == {f"attention.{block}" for block in range(1, NUM_BLOCKS)}


def test_unknown_number_of_epochs_is_asked_for(tmp_path):
    with pytest.raises(BudgetError, match="num_epochs"):
        trainer(tmp_path, pruning(), max_epochs=None, max_steps=6).fit(module(), *loaders())
    callback = pruning(num_epochs=2)
    trainer(tmp_path, callback, max_epochs=None, max_steps=6).fit(module(), *loaders())
    assert callback.plan.num_removed_parameters >= 0.2 * callback.plan.model.num_parameters


def test_training_that_ends_early_says_what_is_missing(tmp_path):
    class End(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    with pytest.warns(UserWarning, match=r"training ended before the pruning did: .*20.0% were asked for"):
        trainer(tmp_path, pruning(), End(), max_epochs=4).fit(module(), *loaders())


def test_a_second_fit_of_the_same_model_keeps_the_plan_and_another_model_gets_its_own(tmp_path):
    callback, model = pruning(healing=True), module()
    trainer(tmp_path, callback).fit(model, *loaders())
    first = callback.plan
    trainer(tmp_path, callback).fit(model, *loaders())
    assert callback.plan.steps == first.steps
    trainer(tmp_path, callback, max_epochs=1).fit(module("gpt2"), *loaders())
    assert callback.plan.model.model_type == "gpt2"
    assert callback.plan.num_removed_parameters >= 0.2 * callback.plan.model.num_parameters


def test_the_pruned_model_is_saved_with_its_plan(tmp_path, tokenizer):
    from lit_prune import PrunePlan, load

    model = module()
    model.tokenizer = tokenizer
    callback = pruning(healing=True, save_to="pruned")
    trainer(tmp_path, callback).fit(model, *loaders())
    again = load(tmp_path / "pruned")
    with torch.no_grad():
        torch.testing.assert_close(again(**VAL_BATCH).logits, model.model.eval()(**VAL_BATCH).logits, atol=1e-5, rtol=0)
    assert PrunePlan.load(tmp_path / "pruned") == callback.plan


@pytest.mark.parametrize("options", [{"amount": 1.2}, {"amount": 0.0}, {"amount": None}, {"schedule": 1.5}])
def test_bad_amounts_are_refused_at_once(options):
    with pytest.raises(BudgetError):
        pruning(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amount": 0.9}, BudgetError, "cannot give 90.0%"),
        ({"amount": 0.5, "granularity": "attention"}, BudgetError, "attention sublayers cannot give"),
        ({"protect": ["mlp.77"]}, LitPruneError, "no mlp.77"),
        ({"model": "modle"}, ModelError, "has no 'modle'"),
        ({"model": "val_loss"}, ModelError, "not a Hugging Face model"),
        ({"start_epoch": 7}, BudgetError, "behind the last of 3 epochs"),
    ],
)
def test_what_cannot_be_is_refused_before_training(tmp_path, options, error, message):
    losses = Losses()
    with pytest.raises(error, match=message):
        trainer(tmp_path, pruning(**options), losses).fit(module(), *loaders())
    assert not losses.seen


@pytest.mark.parametrize(
    ("val", "options", "message"),
    [
        (None, {}, "the trainer has none"),
        (DataLoader(VAL, batch_size=4), {"limit_val_batches": 0}, "the trainer has none"),
        (DataLoader([{"tokens": torch.ones(4)}]), {"num_sanity_val_steps": 0}, r"keys \['tokens'\]"),
        (DataLoader([{"input_ids": torch.ones(4).long(), "labels": torch.full((4,), -100)}]), {}, "masked"),
        (DataLoader([]), {}, "the trainer has none"),
    ],
)
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_validation_data_that_cannot_score_is_refused_before_training(tmp_path, val, options, message):
    losses = Losses()
    with pytest.raises(DataError, match=message):
        trainer(tmp_path, pruning(), losses, **options).fit(module(), loaders()[0], val)
    assert not losses.seen


def test_nan_while_scoring_removes_nothing(tmp_path):
    model = module()
    with torch.no_grad():
        model.model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(MeasureError, match="nan"):
        trainer(tmp_path, pruning(), num_sanity_val_steps=0).fit(model, *loaders())
    assert not removed_sublayers(model.model)


def test_a_module_without_or_with_two_models_is_refused(tmp_path):
    model = module()
    model.second = tiny_model("gpt2")
    with pytest.raises(ModelError, match="holds 2 .*model='attribute.path'"):
        trainer(tmp_path, pruning()).fit(model, *loaders())
    callback = pruning(model="model")
    trainer(tmp_path, callback, max_epochs=1).fit(model, *loaders())
    assert callback.plan.model.model_type == "llama"
