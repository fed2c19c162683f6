"""`HfPruneCallback` in transformers' own Trainer: what goes when, what is trained on, what a checkpoint gives back."""

import math
from contextlib import ExitStack

import pytest
import torch
from lit_prune.callbacks import HfPruneCallback
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lit_prune import PrunePlan, load
from lit_prune.errors import BudgetError, LitPruneError, ModelError
from lit_prune.pruning import compensate_plan
from lit_prune.surgery import remove, removed_sublayers
from tests import naive
from tests.processes import in_torchrun
from tests.tiny import tiny_model

# peft asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

GENERATOR = torch.Generator().manual_seed(0)


def rows(number):
    tokens = torch.randint(3, 128, (number, 16), generator=GENERATOR)
    return [{"input_ids": each, "labels": each} for each in tokens]


TRAIN, VAL = rows(20), rows(6)
VAL_BATCHES = [{"input_ids": torch.stack([each["input_ids"] for each in VAL])}]


def hf(folder, *callbacks, model=None, train=TRAIN, val=VAL, **options):
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "seed": 1}
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(str(folder), **{**settings, **quiet, **options})
    model = tiny_model("llama") if model is None else model
    return Trainer(model, args, train_dataset=train, eval_dataset=val, callbacks=list(callbacks))


def pruning(amount=0.2, **options):
    return HfPruneCallback(amount, **{"progress": False, "compensate": "none", **options})


def adapted():
    torch.manual_seed(3)
    return get_peft_model(tiny_model("llama", attention_dropout=0.1), LoraConfig(r=4, target_modules="all-linear"))


class Zeroing(TrainerCallback):
    """Zeroes the outputs of sublayers from the epochs on in which a plan takes them out; nothing is removed."""

    def __init__(self, plan):
        self.plan, self.epoch, self.held = plan, 0, ExitStack()

    def on_epoch_begin(self, args, state, control, model, **_):
        steps = [step for step in self.plan.steps if step.epoch == self.epoch]
        gone = [(sublayer.kind, sublayer.block) for step in steps for sublayer in step.removed.sublayers]
        self.held.enter_context(naive.zeroed(model, "llama", gone))
        self.epoch += 1


def test_training_goes_on_as_if_what_went_put_out_zeros(tmp_path):
    callback = pruning(0.35, schedule=1)
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "lr_scheduler_type": "cosine"}
    pruned = hf(tmp_path, callback, **options)
    pruned.train()
    dense = hf(tmp_path, Zeroing(callback.plan), **options)
    dense.train()
    assert [step.epoch for step in callback.plan.steps] == [0, 1, 2]
    weights = dict(dense.model.named_parameters())
    for name, parameter in pruned.model.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=1e-6, rtol=1e-5)
    found, expected = (
        torch.tensor([(each["loss"], each["grad_norm"]) for each in trainer.state.log_history if "loss" in each])
        for trainer in (pruned, dense)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_amount_is_spread_and_the_optimizer_holds_what_is_left(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model, optimizer, **_):
            own = {id(each) for each in model.parameters()}
            assert {id(each) for group in optimizer.param_groups for each in group["params"]} == own
            assert {id(each) for each in optimizer.state} == own
            seen.append(sum(each.numel() for each in model.parameters()))

    callback, model = pruning(0.3), tiny_model("llama")
    total = sum(each.numel() for each in model.parameters())
    hf(tmp_path, callback, Look(), model=model).train()
    assert all(1 - left / total >= 0.3 * (1 + number // 5) / 3 for number, left in enumerate(seen))
    assert seen[-1] == total - callback.plan.num_removed_parameters


def test_candidates_are_scored_on_the_evaluation_set(tmp_path):
    callback = pruning(None, schedule=1)
    trainer = hf(tmp_path, callback, num_train_epochs=1, per_device_eval_batch_size=4)
    expected = naive.scores(trainer.model, "llama", VAL_BATCHES, [], by_share=True)
    trainer.train()
    (step,) = callback.plan.steps
    assert step.scores == pytest.approx(
        {f"{kind}.{block}": score for (kind, block), score in expected.items()}, rel=1e-3
    )
    assert callback.plan.calibration["num_sequences"] == 6
    # All 4 blocks once, and for both candidates of each block those from it on: (4 + 2 * (4 + 3 + 2 + 1)) / 4 passes.
    assert callback.plan.cost == 6


@pytest.mark.parametrize(
    ("options", "num_sequences"),
    [
        ({"val": {"one": VAL, "two": VAL[:2]}}, 8),
        ({"val": VAL, "num_batches": 1}, 4),
        ({"val": None, "batches": VAL_BATCHES}, 6),
    ],
)
def test_what_scores_can_be_chosen(tmp_path, options, num_sequences):
    val = options.pop("val")
    callback = pruning(None, schedule=1, **options)
    hf(tmp_path, callback, val=val, num_train_epochs=1, per_device_eval_batch_size=4).train()
    assert callback.plan.calibration["num_sequences"] == num_sequences


def test_the_log_tells_what_went_and_the_plan_is_saved(tmp_path):
    callback = pruning(schedule=1)
    trainer = hf(tmp_path, callback)
    trainer.train()
    removals = [each for each in trainer.state.log_history if "prune/removals" in each]
    assert [each["prune/removed"] for each in removals] == [step.removed.name for step in callback.plan.steps]
    assert [each["epoch"] for each in removals] == [step.epoch for step in callback.plan.steps]
    left = 1 - callback.plan.num_removed_parameters / callback.plan.model.num_parameters
    assert trainer.state.log_history[-1]["final/parameters_left"] == removals[-1]["prune/parameters_left"] == left
    assert math.log(removals[0]["prune/ppl_before"]) == pytest.approx(callback.plan.steps[0].nll_before)
    assert PrunePlan.load(tmp_path) == callback.plan


STOPS = (5, 7)
"""Between two epochs, and within the last one."""


class SaveAt(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_save = state.global_step in self.steps


@pytest.mark.parametrize("make", [lambda: tiny_model("llama", attention_dropout=0.1), adapted], ids=["all", "peft"])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_last_bit(tmp_path, make):
    def run(folder, *saving, **options):
        callback = pruning(0.3, compensate=None)
        trainer = hf(tmp_path / folder, callback, *saving, model=make(), num_train_epochs=2)
        trainer.train(**options)
        return callback.plan, trainer

    plan, whole = run("whole", SaveAt(STOPS))
    assert len({step.epoch for step in plan.steps}) > 1
    for stop in STOPS:
        found, resumed = run("resumed", resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{stop}"))
        assert found.steps == plan.steps
        ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_is_a_pruned_model_with_its_plan(tmp_path):
    trainer = hf(tmp_path, pruning(), save_strategy="epoch")
    trainer.train()
    folder, weights = tmp_path / "checkpoint-15", trainer.model.state_dict()
    for model in (load(folder, dtype="float32"), AutoModelForCausalLM.from_pretrained(folder)):
        assert removed_sublayers(model) == tuple(sorted(PrunePlan.load(folder).removed))
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_adapters_of_what_goes_are_gone_and_the_rest_merge(tmp_path):
    model = adapted()
    callback = pruning(0.35, compensate=None)
    trainer = hf(tmp_path, callback, model=model, save_strategy="epoch")
    trainer.train()
    gone = {
        f"layers.{each.block}.{'self_attn' if each.kind == 'attention' else 'mlp'}." for each in callback.plan.removed
    }
    held = {id(each) for group in trainer.optimizer.param_groups for each in group["params"]}
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert held == {id(each) for each in named.values()}
    assert not any(part in name for name in named for part in gone)
    assert callback.plan.compensation["impossible"].startswith("the model has adapters of yours")
    base = tiny_model("llama", attention_dropout=0.1)
    remove(base, PrunePlan.load(tmp_path / "checkpoint-15").removed)
    again = PeftModel.from_pretrained(base, tmp_path / "checkpoint-15")
    expected = model.eval()(**VAL_BATCHES[0]).logits
    torch.testing.assert_close(again.eval()(**VAL_BATCHES[0]).logits, expected)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(load(tmp_path / "merged")(**VAL_BATCHES[0]).logits, expected, atol=1e-4, rtol=1e-4)


def test_weights_that_stay_are_refitted_on_training_examples(tmp_path):
    callback, again = pruning(None, schedule=2, compensate=None), tiny_model("llama")
    hf(tmp_path, callback, num_train_epochs=1, max_steps=1).train()
    order = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = torch.stack([TRAIN[index]["input_ids"] for index in order])
    found = compensate_plan(again, callback.plan, [{"input_ids": part} for part in tokens.split(4)], "refit")
    assert callback.plan.compensation["refitted"] == found.compensation["refitted"]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(TRAIN)


def test_a_stream_is_pruned_where_the_number_of_epochs_is_given(tmp_path):
    with pytest.raises(BudgetError, match="does not know its number of epochs"):
        hf(tmp_path, pruning(), train=Stream(), max_steps=10).train()
    callback = pruning(num_epochs=2, compensate=None)
    hf(tmp_path, callback, train=Stream(), max_steps=10).train()
    assert {step.epoch for step in callback.plan.steps} == {0, 1}
    assert callback.plan.compensation["impossible"].startswith("refit draws training examples by their numbers")


def test_a_plan_that_was_found_before_is_dropped_and_nothing_is_scored(tmp_path):
    first = pruning(0.3)
    hf(tmp_path / "first", first, num_train_epochs=1).train()
    callback = HfPruneCallback(plan=str(tmp_path / "first"), progress=False)
    hf(tmp_path / "second", callback).train()
    assert callback.plan.removed == first.plan.removed
    assert callback.plan.cost == 0
    assert len({step.epoch for step in callback.plan.steps}) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trainer: setattr(trainer, "is_deepspeed_enabled", True), "found: DeepSpeed"),
        (lambda trainer: setattr(trainer, "is_fsdp_enabled", True), "found: FSDP"),
        (lambda trainer: setattr(trainer.args, "_n_gpu", 2), "found: DataParallel on 2 GPUs"),
        (lambda trainer: trainer.add_callback(pruning()), "2 HfPruneCallbacks would write the same files"),
        (lambda trainer: setattr(trainer, "eval_dataset", None), "it has none: give it an eval_dataset"),
        (lambda trainer: setattr(trainer, "eval_dataset", []), "there are no batches"),
        (lambda trainer: setattr(trainer, "data_collator", list), r"found a list; HfPruneCallback\(batches=...\)"),
        (
            lambda trainer: setattr(trainer.args, "load_best_model_at_end", True),
            "keep the model with the least removed",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_first_step(tmp_path, change, message):
    trainer = hf(tmp_path, pruning(), metric_for_best_model="loss")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    change(trainer)
    with pytest.raises(LitPruneError, match=message):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_the_best_of_one_size_is_loaded_at_the_end(tmp_path):
    callback = pruning(schedule=0.2)
    keeps = {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"}
    trainer = hf(tmp_path, callback, **keeps, learning_rate=0.3)
    trainer.train()
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    assert trainer.state.best_global_step < 15
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())


def test_a_checkpoint_that_lacks_what_it_needs_is_refused(tmp_path):
    trainer = hf(tmp_path, pruning(), save_strategy="epoch")
    trainer.train()
    with pytest.raises(LitPruneError, match="has sublayers that the model has lost since"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    (tmp_path / "checkpoint-10/prune_state.json").write_text("{}")
    with pytest.raises(ModelError, match="prune_state.json is damaged"):
        hf(tmp_path, pruning()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    (tmp_path / "checkpoint-10/prune_state.json").unlink()
    with pytest.raises(ModelError, match="is of a pruned model and has no prune_state.json"):
        hf(tmp_path, pruning()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_a_plain_training_goes_on_with_pruning(tmp_path):
    hf(tmp_path, save_strategy="epoch").train()
    callback = pruning()
    trainer = hf(tmp_path, callback)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert {step.epoch for step in callback.plan.steps} == {2}
    assert callback.plan.budget["stopped_by"] == "amount"
    assert callback.plan.removed[0] in removed_sublayers(trainer.model)


def test_without_its_trainer_the_callback_says_so():
    with pytest.raises(LitPruneError, match="is for the `train` of transformers' Trainer"):
        pruning().on_train_begin(None, None, None)


@pytest.mark.slow
def test_processes_of_ddp_share_the_scoring_and_end_with_the_model_of_one(tmp_path):
    def work(number=2):
        callback = pruning(0.35)
        ddp = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}
        settings = {"per_device_train_batch_size": 4 // number, "optim": "sgd", "learning_rate": 0.05}
        trainer = hf(tmp_path / str(number), callback, **settings, **(ddp if number > 1 else {}))
        trainer.train()
        sums = {name: each.detach().double().abs().sum().item() for name, each in trainer.model.named_parameters()}
        return [step.removed.name for step in callback.plan.steps], sums

    both, alone = in_torchrun(tmp_path, 2, work), work(1)
    assert both[0] == both[1]
    assert both[0][0] == alone[0]
    assert both[0][1] == pytest.approx(alone[1], rel=1e-4)
