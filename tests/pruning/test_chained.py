"""`prune` between the steps of a loop: shares of the first model, one plan, optimizers that forget what went."""

import copy
import math
from contextlib import ExitStack

import pytest
import torch
from lightning.fabric import Fabric

from lit_prune import PrunePlan, apply_plan, prune
from lit_prune.errors import BudgetError, LitPruneError, PlanError
from lit_prune.surgery import remove, removed_sublayers
from tests import naive
from tests.pruning.test_budgets import ATTENTION_FLOPS, MLP_FLOPS, TOTAL_FLOPS
from tests.tiny import tiny_model

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [{"input_ids": torch.randint(3, 128, (4, 20), generator=GENERATOR)} for _ in range(2)]


def go_on(model, **options):
    return prune(model, BATCHES, progress=False, **options)


def loss_of(model):
    return model(**BATCHES[0], labels=BATCHES[0]["input_ids"]).loss


def names(plan):
    return [(sublayer.kind, sublayer.block) for sublayer in plan.removed]


def test_a_loop_trains_on_as_if_what_went_put_out_zeros():
    pruned, dense = tiny_model("llama"), tiny_model("llama")
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (pruned, dense)]
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6) for optimizer in optimizers]
    plan, losses = None, ([], [])
    with ExitStack() as zeros:
        for amount in (0.1, 0.2, 0.35):
            plan = go_on(pruned, amount=amount, after=plan, optimizers=optimizers[:1])
            zeros.enter_context(naive.zeroed(dense, "llama", names(plan)))
            held = {id(each) for group in optimizers[0].param_groups for each in group["params"]}
            assert held == {id(each) for each in pruned.parameters()}
            for _ in range(2):
                for model, optimizer, scheduler, seen in zip(
                    (pruned, dense), optimizers, schedulers, losses, strict=True
                ):
                    loss = loss_of(model)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    scheduler.step()
                    seen.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    weights = dict(dense.named_parameters())
    for name, parameter in pruned.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=1e-6, rtol=1e-5)


def test_amounts_are_shares_of_the_first_model_and_plans_become_one(tmp_path):
    model = tiny_model("llama")
    total = sum(each.numel() for each in model.parameters())
    first = go_on(model, amount=0.1)
    whole = go_on(model, amount=0.3, after=PrunePlan.load(first.save(tmp_path / "plan.json")))
    assert whole.steps[: len(first.steps)] == first.steps
    assert whole.model.num_parameters == whole.budget["total"] == total
    left = sum(each.numel() for each in model.parameters())
    assert whole.num_removed_parameters == total - left == whole.budget["reached"] >= 0.3 * total
    assert apply_plan(tiny_model("llama"), whole).steps == whole.steps
    assert go_on(model, amount=0.3, after=whole).steps == whole.steps
    again = tiny_model("llama")
    remove(again, whole.removed)
    assert removed_sublayers(again) == removed_sublayers(model)


def test_flops_are_those_of_the_first_model():
    model = tiny_model("llama")
    first = go_on(model, amount=0.1, of="flops", granularity="mlp")
    whole = go_on(model, amount=0.3, of="flops", after=first)
    gone = sum({"attention": ATTENTION_FLOPS, "mlp": MLP_FLOPS}[kind] for kind, _ in names(whole))
    assert whole.budget["total"] == TOTAL_FLOPS
    assert whole.budget["reached"] == pytest.approx(gone)
    assert gone >= 0.3 * TOTAL_FLOPS
    with pytest.raises(BudgetError, match="nobody knows what they would have been of kv_cache"):
        go_on(model, amount=0.5, of="kv_cache", after=whole)


def test_a_ceiling_is_above_the_first_loss():
    model = tiny_model("llama")
    first = go_on(model, amount=0.1)
    whole = go_on(model, max_rise=0.3, after=first)
    assert len(whole.steps) > len(first.steps)
    assert math.exp(whole.steps[-1].nll_after - first.steps[0].nll_before) <= 1.3


@pytest.mark.parametrize("search", ["lazy", "one_shot"])
def test_every_search_looks_anew(search):
    model = tiny_model("llama")
    first = go_on(model, amount=0.1, search=search)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    again = copy.deepcopy(model)
    whole, alone = go_on(model, amount=0.3, search=search, after=first), go_on(again, amount=0.1, search=search)
    found = whole.steps[len(first.steps)]
    assert found.nll_before == alone.steps[0].nll_before != first.steps[0].nll_before
    assert found.scores.keys() == alone.steps[0].scores.keys()


def test_fabric_s_optimizers_forget_too():
    fabric = Fabric(accelerator="cpu", devices=1)
    lm = tiny_model("llama")
    model, optimizer = fabric.setup(lm, torch.optim.AdamW(lm.parameters(), lr=1e-3))
    plan = None
    for amount in (0.1, 0.3):
        plan = go_on(lm, amount=amount, after=plan, optimizers=[optimizer], fabric=fabric)
        fabric.backward(model(**BATCHES[0], labels=BATCHES[0]["input_ids"]).loss)
        optimizer.step()
        optimizer.zero_grad()
        own = {id(each) for each in lm.parameters()}
        assert {id(each) for group in optimizer.param_groups for each in group["params"]} == own
        assert {id(each) for each in optimizer.state} == own
    assert plan.budget["reached"] >= 0.3 * plan.model.num_parameters


class Hoarder(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.mine = list(self.param_groups[0]["params"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda model: {"after": go_on(tiny_model("llama"), amount=0.1)},
            PlanError,
            "what the model has lost, and it has",
        ),
        (lambda model: {"after": go_on(tiny_model("gpt2"), amount=0.1)}, PlanError, "model_type"),
        (lambda model: {"optimizers": [Hoarder(model.parameters())]}, LitPruneError, "Hoarder keeps parameters"),
        (
            lambda model: {"after": go_on(model, amount=0.1, compensate="refit"), "compensate": "scale"},
            PlanError,
            "one plan has one compensation; found refit and scale",
        ),
    ],
)
def test_what_cannot_go_on_is_refused(make, error, message):
    model = tiny_model("llama")
    options = make(model)
    gone = removed_sublayers(model)
    with pytest.raises(error, match=message):
        go_on(model, amount=0.3, **options)
    assert removed_sublayers(model) == gone


def test_blocks_stay_in_the_list_where_a_loop_goes_on():
    model = tiny_model("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    go_on(model, amount=0.2, granularity="block", optimizers=[optimizer])
    assert len(model.model.layers) == 4
