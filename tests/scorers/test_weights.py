"""Taylor and magnitude against gradients of one loss over all tokens, and what they leave as it was."""

import pytest
import torch

from lit_prune.errors import BudgetError, LitPruneError
from lit_prune.healing import LoraHealing, attach_lora
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate
from lit_prune.pruning import Pruner, prune
from lit_prune.scorers import SCORERS
from lit_prune.surgery import remove
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model
from tests.zoo import ZOO

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [{"input_ids": torch.randint(3, 128, (size, 20), generator=GENERATOR)} for size in (3, 2)]
NAMES = [(kind, block) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
CANDIDATES = [Candidate.parse(f"{kind}.{block}") for kind, block in NAMES]
BLOCKS = [Candidate.parse(f"block.{block}") for block in range(NUM_BLOCKS)]


def scored(model, scorer, candidates=CANDIDATES, batches=BATCHES, **options):
    return SCORERS.create(scorer, **options)(WhatIf(model, batches), candidates, []).importance


def own_parameters(model, architecture, name):
    specimen = ZOO[architecture]
    modules = [model.get_submodule(f"{specimen.blocks}.{name[1]}.{each}") for each in specimen.going(name[0])]
    return [parameter for module in modules for parameter in module.parameters()]


def backward_over_all_tokens(model):
    """Gradients of the mean loss over the tokens of all batches at once, by the textbook's formula."""
    tokens = torch.cat([batch["input_ids"] for batch in BATCHES])
    log_probabilities = model(input_ids=tokens).logits.log_softmax(-1)
    (-log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None]).mean()).backward()


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt", "mixtral"])
def test_taylor_equals_one_backward_over_all_tokens(architecture):
    reference, model = tiny_model(architecture), tiny_model(architecture)
    backward_over_all_tokens(reference)
    expected = {
        candidate: sum(
            float((each.detach() * each.grad).abs().sum())
            for each in own_parameters(reference, architecture, name)
            if each.grad is not None
        )
        for name, candidate in zip(NAMES, CANDIDATES, strict=True)
    }
    assert scored(model, "taylor") == pytest.approx(expected, rel=1e-4)
    whole = {block: expected[CANDIDATES[2 * i]] + expected[CANDIDATES[2 * i + 1]] for i, block in enumerate(BLOCKS)}
    assert scored(model, "taylor", BLOCKS) == pytest.approx(whole, rel=1e-4)


def test_a_shared_norm_counts_for_whole_blocks():
    model = tiny_model("phi")
    norm = model.model.layers[1].input_layernorm
    alone = scored(model, "magnitude")
    both = scored(model, "magnitude", BLOCKS)[BLOCKS[1]]
    shared = sum(float(each.detach().abs().sum()) for each in norm.parameters())
    assert both == pytest.approx(alone[CANDIDATES[2]] + alone[CANDIDATES[3]] + shared, rel=1e-5)


@pytest.mark.parametrize("power", [1, 2])
def test_magnitude_sums_the_weights_without_any_pass(power):
    model = tiny_model("opt")
    model.register_forward_hook(lambda *_: pytest.fail("ran"))
    expected = {
        candidate: sum(float((each.detach().abs() ** power).sum()) for each in own_parameters(model, "opt", name))
        for name, candidate in zip(NAMES, CANDIDATES, strict=True)
    }
    assert scored(model, "magnitude", power=power) == pytest.approx(expected, rel=1e-5)


def test_taylor_takes_one_pass_each_way_and_leaves_the_model_as_it_was():
    model = tiny_model("llama").train()
    frozen, trained = model.model.layers[0].mlp.up_proj.weight, model.lm_head.weight
    frozen.requires_grad_(False)
    trained.grad = torch.ones_like(trained)
    required = [each.requires_grad for each in model.parameters()]
    before = {name: each.clone() for name, each in model.state_dict().items()}
    passes, backwards = [], []
    model.register_forward_hook(lambda *_: passes.append(1))
    # A block behind the first, so that the input of the module has a gradient.
    model.model.layers[1].register_full_backward_hook(lambda *_: backwards.append(1))
    what_if = WhatIf(model, BATCHES)
    with torch.no_grad():
        found = SCORERS.create("taylor")(what_if, CANDIDATES, []).importance
    assert found[CANDIDATES[1]] > 0
    assert (len(passes), len(backwards)) == (len(BATCHES), len(BATCHES))
    assert what_if.cost == 3
    assert [each.requires_grad for each in model.parameters()] == required
    assert torch.equal(trained.grad, torch.ones_like(trained))
    assert frozen.grad is None
    assert model.training
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_adapters_are_not_the_models_weights():
    plain, adapted = tiny_model("llama"), tiny_model("llama")
    attach_lora(adapted, LoraHealing())  # adapters begin as zero: the same function
    for scorer in ("taylor", "magnitude"):
        assert scored(adapted, scorer) == pytest.approx(scored(plain, scorer), rel=1e-4)


def test_after_a_removal_gradients_are_those_of_the_smaller_model():
    reference, model = tiny_model("llama"), tiny_model("llama")
    with naive.zeroed(reference, "llama", [("mlp", 1)]):
        backward_over_all_tokens(reference)
    remove(model, CANDIDATES[3].sublayers)
    expected = sum(
        float((each.detach() * each.grad).abs().sum()) for each in own_parameters(reference, "llama", ("mlp", 3))
    )
    assert scored(model, "taylor", [CANDIDATES[7]])[CANDIDATES[7]] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scorer", ["taylor", "magnitude"])
def test_the_ends_of_the_model_are_protected(scorer):
    model = tiny_model("llama", num_hidden_layers=8)
    plan = prune(model, BATCHES, amount=0.05, scorer=scorer, granularity="block", progress=False)
    assert set(plan.steps[0].scores) == {"block.4", "block.5"}
    assert (plan.scorer["protect_first"], plan.scorer["protect_last"]) == (4, 2)
    with pytest.raises(BudgetError, match="protect less"):
        prune(tiny_model("llama"), BATCHES, amount=0.05, scorer=scorer, progress=False)
    raw = {"name": scorer, "protect_first": 0, "protect_last": 1}
    assert len(Pruner(tiny_model("llama"), scorer=raw, granularity="block").candidates()) == NUM_BLOCKS - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "taylor", "protect_first": -1}, "protect_first is a number of blocks, 0 or more; found -1"),
        ({"name": "magnitude", "protect_last": -2}, "protect_last is a number"),
        ({"name": "magnitude", "power": 3}, "power must be 1 or 2; found 3"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(LitPruneError, match=message):
        Pruner(tiny_model("llama"), scorer=options)
