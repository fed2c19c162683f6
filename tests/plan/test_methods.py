"""Every preset of configs/methods runs on a tiny model, and says what it does differently."""

import pytest
import torch

from lit_prune.errors import LitPruneError
from lit_prune.measure import WhatIf
from lit_prune.plan import method_names, read_method
from lit_prune.pruning import Pruner
from lit_prune.searches import Budget
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model

BATCHES = [{"input_ids": torch.randint(3, 128, (2, 16), generator=torch.Generator().manual_seed(5))} for _ in range(2)]


def pruner_of(name):
    method = read_method(name)
    return method, Pruner(
        tiny_model("llama", num_hidden_layers=10),
        scorer=method.scorer,
        search=method.search,
        granularity=method.granularity,
        protect=method.protect,
    )


@pytest.mark.parametrize("name", method_names())
def test_a_preset_prunes(name):
    method, pruner = pruner_of(name)
    budget = Budget(0.1, pruner.num_parameters)
    what_if = WhatIf(pruner.model, BATCHES)
    while budget.remaining(pruner.reached):
        pruner.step(what_if, budget)
    kinds = {"attention": {"attention"}, "block": {"attention", "mlp"}}.get(method.granularity)
    assert kinds is None or {each.kind for each in pruner.plan.removed} == kinds
    assert len(method.differs) > 5
    assert method.source


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
def test_blockpruner_takes_what_a_naive_loop_takes(architecture):
    model = tiny_model(architecture)
    names = [(kind, block) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
    expected: list[tuple[str, int]] = []
    for _ in range(5):
        losses = {}
        for name in names:
            if name not in expected:
                with naive.zeroed(model, architecture, [*expected, name]):
                    losses[name] = naive.mean_loss(model, BATCHES)
        expected.append(min(losses, key=losses.get))
    method = read_method("blockpruner")
    pruner = Pruner(model, scorer=method.scorer, search=method.search, granularity=method.granularity)
    what_if = WhatIf(model, BATCHES)
    budget = Budget(0.9, pruner.num_parameters, last="lowest_score")
    for _ in range(5):
        pruner.step(what_if, budget)
    assert [step.removed.name for step in pruner.plan.steps] == [f"{kind}.{block}" for kind, block in expected]


def test_the_field_is_there():
    names = set(method_names())
    assert names >= {"nri", "blockpruner", "sleb", "shortgpt", "llm-drop", "shortened-llama-ppl", "finercut", "gromov"}
    assert names >= {"shortened-llama-taylor", "evopress", "siddiqui-shapley", "bonsai", "random"}


@pytest.mark.parametrize(("name", "kept"), [("sleb", {0, 9}), ("shortened-llama-taylor", {0, 1, 2, 3, 8, 9})])
def test_who_keeps_the_ends_in_the_original_keeps_them_here(name, kept):
    _, pruner = pruner_of(name)
    assert {each.block for each in pruner.candidates()} == set(range(10)) - kept


def test_settings_change_a_method():
    method = read_method("shortgpt").with_settings({"search": "progressive", "protect": ["first"]})
    assert (method.search, method.protect, method.scorer) == ("progressive", ("first",), "block_influence")
    with pytest.raises(LitPruneError, match="a method has no score; it has"):
        method.with_settings({"score": "nri"})


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(LitPruneError, match="did you mean 'blockpruner'.*sleb"):
        read_method("blockpruner2")
