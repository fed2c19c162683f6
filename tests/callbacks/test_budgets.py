"""Budgets in other units than parameters, and the ceiling, in real trainers and across a resume."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_prune import LitCausalLM
from lit_prune.anatomy import find_sublayers
from lit_prune.costs import Latency, prices
from lit_prune.errors import BudgetError, LitPruneError
from lit_prune.healing import LoraHealing, adapters_off, attach_lora, attached_lora
from lit_prune.surgery import removed_sublayers
from tests import naive
from tests.callbacks.test_sublayer_prune import VAL, Halt, Losses, loaders, module, pruning, trainer
from tests.pruning.test_budgets import ATTENTION_FLOPS, MLP_FLOPS, TOTAL_FLOPS
from tests.tiny import ANGLES, NUM_BLOCKS, tiny_model

# Validation has 16 tokens where those tests have 20.
SHORTER = 2 * 2 * 4 * 32
ATTENTION = ATTENTION_FLOPS - SHORTER
TOTAL = TOTAL_FLOPS - NUM_BLOCKS * SHORTER
VAL_BATCHES = [{"input_ids": torch.stack([each["input_ids"] for each in VAL])}]


@pytest.fixture
def timed(monkeypatch):
    """Seconds by hand, 0.25 of 2.0 for an attention, none for an mlp; holds what was asked, and adapters off."""
    calls = []

    def stub(model, **options):
        calls.append((options, [each.disable_adapters for each in model.modules() if hasattr(each, "lora_A")]))
        worth = {"attention": 0.25, "mlp": -0.01}
        return Latency(2.0, {each.id: worth[each.id.kind] for each in find_sublayers(model).sublayers})

    monkeypatch.setattr(prices, "measure_latency", stub)
    return calls


def per_epoch(plan, worth, num_epochs):
    """What was saved when each epoch's training began."""
    found = [(step.epoch, worth[step.removed.name.partition(".")[0]]) for step in plan.steps]
    return [sum(value for when, value in found if when <= epoch) for epoch in range(num_epochs)]


def test_flops_are_spread_evenly_by_hand(tmp_path):
    callback = pruning(amount=0.3, of="flops")
    trainer(tmp_path, callback, max_epochs=3).fit(module(), *loaders())
    budget = callback.plan.budget
    assert (budget["of"], budget["num_positions"]) == ("flops", 16)
    assert budget["total"] == pytest.approx(TOTAL, rel=ANGLES, abs=0)
    saved = per_epoch(callback.plan, {"attention": ATTENTION, "mlp": MLP_FLOPS}, 3)
    dearest = max(ATTENTION, MLP_FLOPS)
    for epoch, value in enumerate(saved):
        due = 0.3 * TOTAL * (epoch + 1) / 3
        assert due <= value < due + dearest
    assert budget["reached"] == saved[-1]
    assert budget["stopped_by"] == "amount"


def test_kv_cache_takes_attention_alone(tmp_path):
    callback = pruning(amount=None, of="kv_cache", schedule=0.25)
    trainer(tmp_path, callback, max_epochs=3).fit(module(), *loaders())
    assert [(step.epoch, step.removed.sublayers[0].kind) for step in callback.plan.steps] == [
        (epoch, "attention") for epoch in range(3)
    ]
    assert callback.plan.budget["reached"] == 3 * 32
    assert callback.plan.budget["stopped_by"] == "end of training"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("healing", [False, True])
def test_latency_is_measured_once_and_a_resumed_run_keeps_its_seconds(tmp_path, timed, healing):
    of = {"name": "latency", "phase": "prefill", "batch": 4, "length": 8}

    def run(folder, *extra, ckpt_path=None):
        L.seed_everything(1, verbose=False)  # for the adapters' first values
        callback = pruning(amount=0.36, of=of, healing=healing)
        keep = ModelCheckpoint(tmp_path / folder, save_top_k=-1, filename="{epoch}")
        trainer(tmp_path, callback, keep, *extra, max_epochs=3).fit(module(), *loaders(), ckpt_path=ckpt_path)
        return callback.plan

    plan = run("whole")
    assert per_epoch(plan, {"attention": 0.25, "mlp": 0}, 3) == [0.25, 0.5, 0.75]
    assert [options for options, _ in timed] == [{"phase": "prefill", "batch": 4, "length": 8}]
    assert all(off for _, adapters in timed for off in adapters)
    assert bool(timed[0][1]) == healing
    with pytest.raises(SystemExit):
        run("halted", Halt(2))
    assert len(timed) == 2
    resumed = run("halted", ckpt_path=tmp_path / "halted/epoch=1.ckpt")
    assert len(timed) == 2, "the checkpoint's seconds"
    assert resumed.removed == plan.removed
    assert resumed.budget == plan.budget
    assert resumed.budget["reached"] == 0.75


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_of_another_unit_is_refused_before_training(tmp_path, timed):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer(tmp_path, pruning(of="latency"), keep, max_epochs=2).fit(module(), *loaders())
    losses = Losses()
    for of in ("flops", {"name": "latency", "batch": 2}):
        with pytest.raises(BudgetError, match="removals were made under an amount of latency .* same `of`"):
            trainer(tmp_path, pruning(of=of), losses).fit(module(), *loaders(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert not losses.seen


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_checkpoints_of_before_have_no_prices(tmp_path):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer(tmp_path, first := pruning(), keep, max_epochs=2).fit(module(), *loaders())
    path = tmp_path / "epoch=0.ckpt"
    state = torch.load(path, weights_only=True)
    (key,) = (key for key in state["callbacks"] if "SublayerPrune" in key)
    del state["callbacks"][key]["prices"]
    torch.save(state, path)
    trainer(tmp_path, second := pruning(), max_epochs=2).fit(module(), *loaders(), ckpt_path=path)
    assert second.plan.removed == first.plan.removed


def rise(plan):
    """Of perplexity by the last removal, from hooks on a model that is not trained in between."""
    model, gone = tiny_model("llama"), [(each.kind, each.block) for each in plan.removed]
    dense = naive.mean_loss(model, VAL_BATCHES)
    with naive.zeroed(model, "llama", gone):
        return math.expm1(naive.mean_loss(model, VAL_BATCHES) - dense)


def frozen(max_rise, **options):
    """A run whose training changes nothing."""
    return pruning(amount=None, max_rise=max_rise, **options), LitCausalLM(tiny_model("llama"), learning_rate=0.0)


def test_as_much_goes_as_fits_under_the_ceiling(tmp_path):
    callback, model = frozen(0.05)
    trainer(tmp_path, callback, max_epochs=2).fit(model, *loaders())
    plan = callback.plan
    assert {step.epoch for step in plan.steps} == {0}
    assert plan.budget["rise"] == pytest.approx(rise(plan), abs=1e-5)
    assert plan.budget["rise"] <= 0.05
    assert plan.budget["stopped_by"] == "max_rise"
    reference, gone = tiny_model("llama"), [(each.kind, each.block) for each in plan.removed]
    dense = naive.mean_loss(reference, VAL_BATCHES)
    for each in naive.scores(reference, "llama", VAL_BATCHES, gone, by_share=True):
        with naive.zeroed(reference, "llama", [*gone, each]):
            assert math.expm1(naive.mean_loss(reference, VAL_BATCHES) - dense) > 0.05, "nothing more fits"


def test_the_ceiling_and_a_schedule_hold_together(tmp_path):
    callback, model = frozen(0.05, schedule=1)
    trainer(tmp_path, callback, max_epochs=3).fit(model, *loaders())
    assert [step.epoch for step in callback.plan.steps] == list(range(len(callback.plan.steps)))
    assert rise(callback.plan) <= 0.05


def test_a_ceiling_before_the_amount_is_said(tmp_path):
    callback, model = pruning(amount=0.5, max_rise=0.0), LitCausalLM(tiny_model("llama"), learning_rate=0.0)
    with pytest.warns(UserWarning, match=r"nothing more fits under max_rise=0.0: .*50.0% were asked for"):
        trainer(tmp_path, callback, max_epochs=2).fit(model, *loaders())
    assert callback.plan.budget["stopped_by"] == "max_rise"
    assert callback.plan.budget["reached"] < callback.plan.budget["target"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"of": "flop"}, LitPruneError, "must be one of params"),
        ({"max_rise": -1.0}, BudgetError, "max_rise is the share"),
        ({"amount": None}, BudgetError, "amount=0.2, max_rise=0.05, or a schedule"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        pruning(**options)


def test_what_a_unit_cannot_give_is_refused_before_training(tmp_path):
    losses = Losses()
    with pytest.raises(BudgetError, match=r"mlp sublayers cannot give 20.0% of the KV cache"):
        trainer(tmp_path, pruning(of="kv_cache", granularity="mlp"), losses).fit(module(), *loaders())
    assert not losses.seen


def test_adapters_are_as_before_when_they_are_on_again():
    model = tiny_model("llama")
    plain = model(**VAL_BATCHES[0]).logits
    attach_lora(model, LoraHealing(rank=2))
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.fill_(0.1)
    model.model.layers[0].mlp.up_proj.lora_A["default"].weight.requires_grad_(False)
    flags = [each.requires_grad for each in model.parameters()]
    adapted = model(**VAL_BATCHES[0]).logits
    with adapters_off(model):
        assert torch.equal(model(**VAL_BATCHES[0]).logits, plain)
    assert torch.equal(model(**VAL_BATCHES[0]).logits, adapted)
    assert not torch.equal(adapted, plain)
    assert [each.requires_grad for each in model.parameters()] == flags
    assert attached_lora(model) is not None
    assert not removed_sublayers(model)
