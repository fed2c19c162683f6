"""Optimizers and schedulers after a removal, against fresh ones of a model that never had what is gone."""

import copy

import pytest
import torch
from torch.optim import LBFGS, SGD, Adafactor, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_prune.errors import LitPruneError
from lit_prune.plan import SublayerId
from lit_prune.surgery import remove, require_forgetful
from tests.tiny import tiny_model

GONE = [SublayerId(1, "attention"), SublayerId(2, "mlp")]
TOKENS = torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(0))


class Around(Optimizer):
    """As SAM and Lookahead are made: around another, whose groups it shares."""

    def __init__(self, params):
        super().__init__(params, {})
        self.inside = SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.inside.param_groups

    def step(self, closure):
        return self.inside.step(closure)


class Flat(SGD):
    """Keeps its parameters a second time."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.flat = {"all": [(0, each) for each in self.param_groups[0]["params"]]}


def by_sublayer(model):
    blocks = model.model.layers
    groups = [[*each.parameters()] for block in blocks for each in (block.self_attn, block.mlp)]
    return AdamW([{"params": each, "lr": 1e-2 / (1 + number)} for number, each in enumerate(groups)])


MAKERS = {
    "adamw of named parameters": lambda model: AdamW(model.named_parameters(), lr=1e-2),
    "adafactor": lambda model: Adafactor(model.parameters(), lr=1e-2),
    "a group for every sublayer": by_sublayer,
    "an optimizer around another": lambda model: Around(model.parameters()),
    "lbfgs": lambda model: LBFGS(model.parameters(), lr=0.1, max_iter=3),
}


def with_schedule(optimizer):
    """One rate for every group."""
    return LambdaLR(optimizer, [lambda step, to=to: 1 / (1 + to * step) for to in range(len(optimizer.param_groups))])


def train(model, optimizer, schedule, number):
    def closure():
        optimizer.zero_grad()
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        return loss

    for _ in range(number):
        optimizer.step(closure)
        schedule.step()


@pytest.mark.parametrize("name", MAKERS)
def test_after_a_removal_it_goes_on_as_one_of_the_smaller_model(name):
    model = tiny_model("llama")
    optimizer = MAKERS[name](model)
    require_forgetful(optimizer)
    schedule = with_schedule(optimizer)
    train(model, optimizer, schedule, 2)
    remove(model, GONE, [optimizer])
    twin = tiny_model("llama")
    remove(twin, GONE)
    twin.load_state_dict(model.state_dict())
    fresh = MAKERS[name](twin)
    other_schedule = with_schedule(fresh)
    other_schedule.load_state_dict(schedule.state_dict())
    inside, other = (getattr(each, "inside", each) for each in (optimizer, fresh))
    pairs = dict(zip(model.parameters(), twin.parameters(), strict=True))
    other.state.update({pairs[each]: copy.deepcopy(state) for each, state in inside.state.items()})
    for ours, theirs in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        theirs["lr"] = ours["lr"]
        assert [pairs[each] for each in ours["params"]] == theirs["params"]
        assert ours.get("param_names") == theirs.get("param_names")
    train(model, optimizer, schedule, 2)
    train(twin, fresh, other_schedule, 2)
    assert schedule.get_last_lr() == other_schedule.get_last_lr()
    weights = twin.state_dict()
    assert all(torch.equal(each, weights[key]) for key, each in model.state_dict().items())


def test_lbfgs_begins_its_history_anew_where_it_lost_something_alone():
    model, untouched = tiny_model("llama"), torch.nn.Linear(2, 2)
    optimizer, other = LBFGS(model.parameters(), max_iter=2), LBFGS(untouched.parameters(), max_iter=2)
    train(model, optimizer, with_schedule(optimizer), 1)
    other.step(lambda: untouched(torch.ones(2)).sum().backward() or torch.zeros(()))
    remove(model, GONE, [optimizer, other])
    assert (len(optimizer.state), len(other.state)) == (0, 1)


def test_one_that_keeps_parameters_elsewhere_is_refused():
    with pytest.raises(LitPruneError, match="Flat keeps parameters of its own in `flat`"):
        require_forgetful(Flat(tiny_model("llama").parameters()))
