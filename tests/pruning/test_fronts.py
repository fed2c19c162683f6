"""Smaller plans out of one: what a search for that amount would have removed, to the bit."""

from dataclasses import replace

import pytest
import torch

from lit_prune import PrunePlan, apply_plan, front_of, load, prune
from lit_prune.__main__ import main
from lit_prune.errors import BudgetError, PlanError
from tests.tiny import tiny_model

BATCHES = [{"input_ids": torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(1))} for _ in range(2)]


def dense():
    return tiny_model("llama", num_hidden_layers=6)


@pytest.fixture(scope="module")
def plan():
    return prune(dense(), BATCHES, amount=0.4, search="progressive", progress=False)


@pytest.mark.parametrize("amount", [0.02, 0.1, 0.15, 0.2, 0.3, 0.4])
def test_an_amount_is_what_a_search_for_it_finds(plan, amount):
    searched, applied = dense(), dense()
    own = prune(searched, BATCHES, amount=amount, search="progressive", progress=False)
    front = front_of(plan, applied, amount=amount)
    assert front.removed == own.removed
    assert front.num_removed_parameters == own.num_removed_parameters == front.budget["reached"]
    made = apply_plan(applied, PrunePlan.from_dict(plan.to_dict()), amount=amount)
    assert made.removed == own.removed
    weights = searched.state_dict()
    assert applied.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in applied.state_dict().items())


@pytest.mark.parametrize("of", ["flops", "kv_cache"])
def test_in_the_unit_of_the_plan(of):
    whole = prune(dense(), BATCHES, amount=0.5, of=of, search="progressive", progress=False)
    own = prune(dense(), BATCHES, amount=0.2, of=of, search="progressive", progress=False)
    front = front_of(whole, dense(), amount=0.2)
    assert front.removed == own.removed
    assert front.budget["reached"] == own.budget["reached"]


def test_steps_and_a_ceiling(plan):
    assert front_of(plan, dense(), num_steps=2).steps == plan.steps[:2]
    rises = [step.nll_after - plan.steps[0].nll_before for step in plan.steps]
    limit = torch.tensor(max(rises[:3]) + 1e-9).double().expm1().item()
    number = next((number for number, rise in enumerate(rises) if rise > max(rises[:3]) + 1e-9), len(rises))
    assert front_of(plan, dense(), max_rise=max(0.0, limit)).steps == plan.steps[:number]


def test_what_the_plan_does_not_hold_is_refused_with_the_most_that_it_does(plan):
    with pytest.raises(BudgetError, match=r"the plan removes 4\d\.\d% of the model, and 70\.0% are asked for"):
        front_of(plan, dense(), amount=0.7)
    with pytest.raises(BudgetError, match=f"has {len(plan.steps)} removals; 99 cannot"):
        front_of(plan, dense(), num_steps=99)
    with pytest.raises(BudgetError, match="amount is the share"):
        front_of(plan, dense(), amount=1.5)
    whole = prune(dense(), BATCHES, amount=0.3, search="evolutionary", progress=False)
    with pytest.raises(PlanError, match="the evolutionary search chose what goes as one set"):
        front_of(whole, dense(), amount=0.1)
    unknown = replace(plan, steps=tuple(replace(step, nll_after=None) for step in plan.steps))
    with pytest.raises(PlanError, match="no losses before and after"):
        front_of(unknown, dense(), max_rise=0.1)


def test_on_the_command_line(plan, tmp_path, tokenizer, capsys):
    dense().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    plan.save(tmp_path / "plan.json")
    command = ["apply", str(tmp_path / "plan.json"), str(tmp_path / "model")]
    assert main([*command, "--amount", "0.1", "--output", str(tmp_path / "tenth")]) == 0
    assert "10.0% asked for" in capsys.readouterr().out
    own = dense()
    prune(own, BATCHES, amount=0.1, search="progressive", progress=False)
    found = load(tmp_path / "tenth").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in own.state_dict().items())
    assert main([*command, "--amount", "0.9", "--output", str(tmp_path / "most")]) == 2
    assert "search for more" in capsys.readouterr().err
    assert not (tmp_path / "most").exists()
