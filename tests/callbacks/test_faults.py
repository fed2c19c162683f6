"""What must not go wrong around the callback: partial states, exceptions, resumes in odd places."""

import math
import pickle
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lit_prune.callbacks import BeforeAfterCallback, SublayerAnalysisCallback
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lit_prune import LitCausalLM, LoraHealing, TextDataModule, load
from lit_prune.__main__ import main
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.files import reserved
from lit_prune.healing import attach_lora, merge
from lit_prune.loading.sources import tokenizer_beside
from lit_prune.surgery import removed_sublayers
from lit_prune.training import restore_structure
from tests.callbacks.test_sublayer_prune import TRAIN, VAL, Losses, loaders, module, pruning, trainer
from tests.tiny import character_tokenizer, tiny_model


def test_a_checkpoint_that_lit_prune_had_no_part_in_removes_nothing():
    model = tiny_model("llama")
    part = {name: value for name, value in model.state_dict().items() if "self_attn" in name}
    assert not restore_structure(model, {"state_dict": part})
    assert not removed_sublayers(model)


def test_no_hook_outlives_a_fit_that_failed(tmp_path):
    class Fail(L.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("stop")

    model = module()
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, pruning(), Fail()).fit(model, *loaders())
    assert "on_load_checkpoint" not in vars(model)


def test_what_launchers_and_sweeps_pickle_goes_on_as_it_was(tmp_path):
    made = pruning(healing=True, distill=True), module()
    copied = pickle.loads(pickle.dumps(made))
    for callback, model in (made, copied):
        torch.manual_seed(0)
        trainer(tmp_path, callback, max_epochs=2).fit(model, *loaders())
    again, fitted = pickle.loads(pickle.dumps(copied))
    assert again.plan == copied[0].plan
    assert again.plan.steps == made[0].plan.steps != ()
    expected = made[1].state_dict()
    assert fitted.state_dict().keys() == expected.keys()
    assert all(torch.equal(each, expected[name]) for name, each in fitted.state_dict().items())
    pickle.dumps([BeforeAfterCallback(), SublayerAnalysisCallback(), TextDataModule("builtin")])


def test_a_trial_run_leaves_nothing(tmp_path):
    callback = pruning(save_to="pruned")
    others = BeforeAfterCallback(repeats=0), SublayerAnalysisCallback(impact=False, progress=False)
    trainer(tmp_path, callback, *others, fast_dev_run=True).fit(module(), *loaders())
    assert callback.plan.steps
    assert not list(tmp_path.iterdir())


def test_two_fits_do_not_save_into_one_folder(tmp_path):
    with reserved(tmp_path / "pruned"), pytest.raises(LitPruneError, match="another fit is about to save"):
        trainer(tmp_path, pruning(save_to="pruned")).fit(module(), *loaders())
    assert not list(tmp_path.iterdir())
    trainer(tmp_path, pruning(save_to="pruned"), max_epochs=1).fit(module(), *loaders())
    assert removed_sublayers(load(tmp_path / "pruned"))
    assert not list(tmp_path.glob(".*")), "it was given up"


def test_a_model_without_a_tokenizer_is_saved_without_one(tmp_path, capsys):
    with pytest.warns(UserWarning, match="without a tokenizer: .*does not say where it was loaded.*of your module"):
        trainer(tmp_path, pruning(save_to="pruned"), max_epochs=1).fit(module(), *loaders())
    assert removed_sublayers(load(tmp_path / "pruned"))
    assert not list((tmp_path / "pruned").glob("tokenizer*"))
    for arguments in (["export", "--format=hf"], ["heal"], ["evaluate"]):
        verb, *options = arguments
        assert main([verb, str(tmp_path / "pruned"), *options, f"--output={tmp_path / 'out'}"]) == 2
        assert "pruned: it has none; save that of the model" in capsys.readouterr().err


def test_a_tokenizer_is_found_by_the_models_name(tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    owner = SimpleNamespace(tokenizer=None)
    found = tokenizer_beside(owner, AutoModelForCausalLM.from_pretrained(folder))
    assert found.get_vocab() == character_tokenizer().get_vocab()
    owner.tokenizer = character_tokenizer(model_max_length=7)
    assert tokenizer_beside(owner, None) is owner.tokenizer


def test_a_batch_with_nan_is_not_left_out_of_the_loss(tmp_path):
    model = module()
    rare = next(token for token in range(3, 128) if sum(bool((each["input_ids"] == token).any()) for each in VAL) == 1)
    with torch.no_grad():
        model.model.get_input_embeddings().weight[rare, 0] = torch.nan
    batches = DataLoader(VAL, batch_size=1)
    assert trainer(tmp_path).validate(model, batches, verbose=False)[0]["val_loss"] == math.inf
    assert trainer(tmp_path).test(model, batches, verbose=False)[0]["test_ppl"] > 1e300


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_shuffled_loaders_and_dropout_resume_to_the_last_bit(tmp_path):
    class Halt(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise SystemExit

    def run(folder, *extra, ckpt_path=None):
        L.seed_everything(3, verbose=False)
        losses = Losses()
        model = LitCausalLM(tiny_model("gpt2", resid_pdrop=0.2, embd_pdrop=0.2), learning_rate=1e-3)
        data = DataLoader(TRAIN, batch_size=4, shuffle=True), DataLoader(VAL, batch_size=4)
        keep = ModelCheckpoint(tmp_path / folder, save_top_k=-1, filename="{epoch}")
        trainer(tmp_path, pruning(), losses, keep, *extra, max_epochs=4).fit(model, *data, ckpt_path=ckpt_path)
        return losses.seen

    whole = run("whole")
    with pytest.raises(SystemExit):
        run("halted", Halt())
    L.seed_everything(99, verbose=False)
    assert run("halted", ckpt_path=tmp_path / "halted/epoch=1.ckpt") == [each for each in whole if each[0] >= 2]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning on the second folder of checkpoints
@pytest.mark.parametrize("options", [{"schedule": 1, "amount": None}, {"amount": None, "max_rise": 0.2}], ids=str)
def test_a_checkpoint_of_any_step_goes_on_with_the_same_drops(tmp_path, options):
    def run(folder, **settings):
        callback, keep = pruning(**options), ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        model, data = LitCausalLM(tiny_model("llama"), learning_rate=1e-2), DataLoader(VAL, batch_size=2)
        trainer(tmp_path, callback, keep).fit(model, data, data, **settings)
        return [(step.removed.name, step.epoch) for step in callback.plan.steps]

    whole = run(tmp_path / "whole")
    assert len({epoch for _, epoch in whole}) > 1
    # Three batches an epoch: in the middle of the first and the second, and at the end of both.
    for step in (1, 3, 4, 6):
        assert run(tmp_path / "again", ckpt_path=tmp_path / f"whole/step={step}.ckpt") == whole, step


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning on its own exception checkpoint
def test_a_drop_that_failed_is_made_up_for_after_a_resume(tmp_path):
    class Break(L.Callback):
        """Makes the second epoch's scoring fail once."""

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                pl_module.model.register_forward_pre_hook(self.fail)

        def fail(self, *_):
            raise RuntimeError("scoring fails")

    keep = OnExceptionCheckpoint(tmp_path, filename="broken")
    with pytest.raises(RuntimeError, match="scoring fails"):
        trainer(tmp_path, pruning(schedule=1, amount=None), keep, Break()).fit(module(), *loaders())
    callback = pruning(schedule=1, amount=None)
    trainer(tmp_path, callback).fit(module(), *loaders(), ckpt_path=tmp_path / "broken.ckpt")
    assert [step.epoch for step in callback.plan.steps] == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_validating_another_checkpoint_leaves_the_plan(tmp_path):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    callback, model = pruning(schedule=1), module()
    fitted = trainer(tmp_path, callback, keep)
    fitted.fit(model, *loaders())
    steps = callback.plan.steps
    fitted.validate(module(), loaders()[1], ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert callback.plan.steps == steps


def test_frozen_parameters_stay_frozen_after_the_merge():
    model = tiny_model("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    attach_lora(model, LoraHealing(rank=2))
    merge(model)
    frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]


def test_adapters_of_the_user_are_not_taken_for_ours(tmp_path):
    for options, message in (({"healing": True}, "adapters already"), ({"save_to": "out"}, "adapters of yours")):
        model = module()
        attach_lora(model.model, LoraHealing(rank=2))
        with pytest.raises(LitPruneError, match=message):
            trainer(tmp_path, pruning(**options)).fit(model, *loaders())


def test_a_checkpoint_without_adapters_is_not_healed_in_silence(tmp_path):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer(tmp_path, pruning(), keep, max_epochs=2).fit(module(), *loaders())
    with pytest.raises(ModelError, match="no adapters and the model has"):
        trainer(tmp_path, pruning(healing=True)).fit(module(), *loaders(), ckpt_path=tmp_path / "epoch=0.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "rank of 1 or more"), ({"dropout": 1.0}, "dropout of 0 to below 1")],
)
def test_lora_that_cannot_be_is_refused(options, message):
    with pytest.raises(LitPruneError, match=message):
        LoraHealing(**options)


def test_lora_targets_that_do_not_exist_are_refused():
    with pytest.raises(LitPruneError, match="cannot be attached"):
        attach_lora(tiny_model("llama"), LoraHealing(targets=["no_such_layer"]))


def test_what_does_not_go_together_is_refused_at_once(tmp_path):
    losses = Losses()
    with pytest.raises(LitPruneError, match="add that one before it"):
        trainer(tmp_path, BeforeAfterCallback(repeats=0), pruning(), losses).fit(module(), *loaders())
    with pytest.raises(LitPruneError, match="unknown lr_schedule 'cosin'"):
        module(lr_schedule="cosin")
    with pytest.raises(LitPruneError, match="wants an end"):
        trainer(tmp_path, pruning(schedule=1), losses, max_epochs=-1).fit(module(lr_schedule="cosine"), *loaders())
    assert not losses.seen


def test_a_schedule_that_dropped_nothing_says_so(tmp_path):
    with pytest.warns(UserWarning, match=r"0.0% of the parameters are gone"):
        trainer(tmp_path, pruning(schedule=lambda epoch: 0)).fit(module(), *loaders())
