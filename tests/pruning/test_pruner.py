import math

import numpy as np
import pytest
import torch

from lit_prune import load
from lit_prune.anatomy import find_sublayers
from lit_prune.errors import BudgetError, LitPruneError, PlanError
from lit_prune.export import save
from lit_prune.measure import WhatIf
from lit_prune.plan import PrunePlan
from lit_prune.pruning import Pruner, apply_plan, prune
from lit_prune.searches import Budget, Quota
from lit_prune.surgery import remove, removed_sublayers
from tests import naive
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, VOCAB_SIZE, tiny_model

BATCHES = [{"input_ids": torch.randint(3, 128, (4, 20), generator=torch.Generator().manual_seed(1))}]


def test_a_series_ends_with_its_quota_and_the_next_goes_on():
    model = tiny_model("llama")
    pruner, what_if = Pruner(model), WhatIf(model, BATCHES)
    budget = Budget(0.5, pruner.num_parameters)
    first = list(pruner.steps(what_if, budget, Quota(budget.target, num_steps=2)))
    assert pruner.plan.steps == tuple(first)
    assert len(first) == 2
    (third,) = pruner.steps(what_if, budget, Quota(budget.target, num_steps=3, num_before=0))
    assert pruner.plan.budget["num_removals"] == 3
    rest = list(pruner.steps(what_if, budget))
    assert pruner.plan.steps == (*first, third, *rest)
    assert pruner.reached >= budget.target > pruner.saved(pruner.plan.steps[:-1])
    assert not list(pruner.steps(what_if, budget))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_greedy_order_is_the_naive_greedy_order(architecture):
    model, reference = tiny_model(architecture), tiny_model(architecture)
    pruner = Pruner(model)
    batches = [{"input_ids": naive.own_text(model, 8, 40)}, *BATCHES]
    what_if, budget = WhatIf(model, batches), Budget(0.9, pruner.num_parameters, last="lowest_score")
    gone = []
    for _ in range(4):
        scores = naive.scores(reference, architecture, batches, gone, by_share=True)
        gone.append(min(scores, key=scores.__getitem__))
        pruner.step(what_if, budget)
    assert [(each.kind, each.block) for each in pruner.plan.removed] == gone


def test_a_plan_holds_the_evidence():
    model = tiny_model("llama")
    dense = naive.mean_loss(model, BATCHES)
    total = sum(each.numel() for each in model.parameters())
    plan = prune(model, BATCHES, amount=0.2, progress=False, model_name="tiny", calibration={"source": "random tokens"})
    first, last = plan.steps[0], plan.steps[-1]
    assert first.nll_before == pytest.approx(dense, abs=1e-6)
    assert last.nll_after == pytest.approx(naive.mean_loss(model, BATCHES), abs=1e-5)
    assert sum(each.numel() for each in model.parameters()) == total - plan.num_removed_parameters
    assert 0.2 * total <= plan.num_removed_parameters
    assert plan.num_removed_parameters - last.num_parameters < 0.2 * total
    assert len(first.scores) == 2 * NUM_BLOCKS
    assert len(last.scores) == 2 * NUM_BLOCKS - len(plan.steps) + 1
    assert first.cost == pytest.approx((NUM_BLOCKS + 2 * sum(range(1, NUM_BLOCKS + 1))) / NUM_BLOCKS)
    assert plan.scorer == {"name": "nri", "baseline": "current", "impact": "relative", "normaliser": "parameters"}
    assert plan.calibration["source"] == "random tokens"
    assert plan.calibration["num_tokens"] == 80
    assert plan.budget["amount"] == 0.2
    assert {"torch", "transformers"} <= set(plan.versions)


def test_a_plan_tells_how_much_worse_unseen_text_is():
    model, draw = tiny_model("llama"), torch.Generator().manual_seed(9)
    texts = {
        "even": [{"input_ids": torch.randint(3, 128, (3, 16), generator=draw)} for _ in range(3)],
        "uneven": [{"input_ids": torch.randint(3, 128, (2, length), generator=draw)} for length in (5, 20, 9)],
        "short": [{"input_ids": torch.randint(3, 128, (1, 8), generator=draw)}],
    }

    def losses():
        with torch.no_grad():
            return {
                name: [
                    (float(naive.mean_loss(model, [{"input_ids": row[None]}])) * (len(row) - 1), len(row) - 1)
                    for batch in batches
                    for row in batch["input_ids"]
                ]
                for name, batches in texts.items()
            }

    before = losses()
    plan = prune(model, BATCHES, amount=0.3, compensate="refit", unseen=texts, progress=False)
    after = losses()
    for name, row in plan.unseen.items():
        old, new = (np.array(found[name]) for found in (before, after))
        tokens, gained = old[:, 1], new[:, 0] - old[:, 0]
        assert (row["num_windows"], row["num_tokens"]) == (len(tokens), tokens.sum())
        assert row["nll_before"] == pytest.approx(old[:, 0].sum() / tokens.sum(), abs=1e-5)
        assert row["nll_after"] == pytest.approx(new[:, 0].sum() / tokens.sum(), abs=1e-5)
        if name == "even":  # the textbook's standard error of a mean, where windows are of one length
            expected = np.std(gained / tokens, ddof=1) / math.sqrt(len(tokens))
            assert row["error"] == pytest.approx(expected, rel=1e-3)
        elif name == "uneven":  # near the jackknife of the ratio
            left = [(gained.sum() - g) / (tokens.sum() - t) for g, t in zip(gained, tokens, strict=True)]
            number = len(left)
            jackknife = math.sqrt((number - 1) / number * np.square(np.array(left) - np.mean(left)).sum())
            assert row["error"] == pytest.approx(jackknife, rel=0.35)
        else:
            assert row["error"] is None
    assert PrunePlan.from_dict(plan.to_dict()).unseen == plan.unseen
    copy = apply_plan(tiny_model("llama"), plan, uncompensated=True)
    assert not copy.unseen  # of another model nothing is known


@pytest.mark.parametrize(("granularity", "names"), [
    ("attention", {f"attention.{i}" for i in range(NUM_BLOCKS)}),
    ("mlp", {f"mlp.{i}" for i in range(NUM_BLOCKS)}),
    ("block", {f"block.{i}" for i in range(NUM_BLOCKS)}),
])  # fmt: skip
def test_granularity_limits_what_goes(granularity, names):
    model = tiny_model("llama")
    plan = prune(model, BATCHES, amount=0.05, granularity=granularity, progress=False)
    assert set(plan.steps[0].scores) == names
    assert {step.removed.name for step in plan.steps} <= names


def test_protected_sublayers_stay():
    model = tiny_model("llama")
    plan = prune(model, BATCHES, amount=0.3, protect=["block.0", "mlp.1"], progress=False)
    assert set(plan.steps[0].scores) == {"attention.1", "attention.2", "mlp.2", "attention.3", "mlp.3"}


def test_one_shot_scores_the_dense_model_once():
    model = tiny_model("llama")
    expected = sorted((score, name) for name, score in naive.scores(model, "llama", BATCHES, [], by_share=True).items())
    plan = prune(model, BATCHES, amount=0.3, search="one_shot", progress=False)
    found = [(step.removed.sublayers[0].kind, step.removed.block) for step in plan.steps]
    assert found[:-1] == [name for _, name in expected][: len(found) - 1]
    assert [step.cost > 0 for step in plan.steps] == [True] + [False] * (len(plan.steps) - 1)


def test_a_plan_applies_to_a_copy_and_to_nothing_else():
    plan = prune(tiny_model("llama"), BATCHES, amount=0.2, progress=False)
    copy = tiny_model("llama", seed=5)
    apply_plan(copy, PrunePlan.from_dict(plan.to_dict()))
    assert set(removed_sublayers(copy)) == set(plan.removed)
    with pytest.raises(PlanError, match="made for"):
        apply_plan(copy, plan)
    for other in (tiny_model("mistral"), tiny_model("llama", num_hidden_layers=5), tiny_model("llama", hidden_size=64)):
        with pytest.raises(PlanError, match="made for"):
            apply_plan(other, plan)
        assert not removed_sublayers(other)


def test_impossible_amounts_are_refused_before_any_forward():
    model = tiny_model("llama")
    model.register_forward_hook(lambda *_: pytest.fail("measured"))
    with pytest.raises(BudgetError, match="attention sublayers cannot give"):
        prune(model, BATCHES, amount=0.5, granularity="attention", progress=False)
    with pytest.raises(BudgetError, match="above 0 and below 1"):
        prune(model, BATCHES, amount=1.0, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protect": ["attention.99"]}, "no attention.99; its blocks are 0 to 3"),
        ({"protect": ["layer.1"]}, "'layer.1' is not a sublayer"),
        ({"scorer": "nir"}, "did you mean 'nri'"),
        ({"scorer": {"name": "nri", "base": 1}}, "does not take these options"),
        ({"search": "progresive"}, "did you mean 'progressive'"),
        ({"granularity": "head"}, "granularity must be one of"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(LitPruneError, match=message):
        prune(tiny_model("llama"), BATCHES, amount=0.2, progress=False, **options)


def test_pruning_goes_on_from_a_pruned_model():
    model = tiny_model("llama")
    first = prune(model, BATCHES, amount=0.1, progress=False)
    second = prune(model, BATCHES, amount=0.1, progress=False)
    assert not set(first.removed) & set(second.removed)
    assert second.model.num_parameters == first.model.num_parameters - first.num_removed_parameters
    assert set(removed_sublayers(model)) == {*first.removed, *second.removed}


def test_a_plan_fits_a_copy_with_more_tokens_and_no_copy_that_has_lost_something_else(tmp_path):
    plan = prune(tiny_model("llama"), BATCHES, amount=0.2, progress=False)
    copy = tiny_model("llama")
    copy.resize_token_embeddings(VOCAB_SIZE + 3, mean_resizing=False)
    tokens, whole = torch.arange(100, VOCAB_SIZE + 3)[None], copy.num_parameters()
    with torch.no_grad(), naive.zeroed(copy, "llama", [(each.kind, each.block) for each in plan.removed]):
        expected = copy(input_ids=tokens, use_cache=False).logits
    own = apply_plan(copy, plan)
    loaded = load(save(copy, tmp_path / "pruned", plan=own))
    assert torch.equal(loaded(input_ids=tokens, use_cache=False).logits, expected)
    assert own.model.num_parameters == whole == copy.num_parameters() + plan.num_removed_parameters
    smaller = tiny_model("llama")
    left = next(each.id for each in find_sublayers(smaller).sublayers if each.id not in plan.removed)
    remove(smaller, [left])
    with pytest.raises(PlanError, match="has lost 1 sublayers .*Apply it to an unpruned copy"):
        apply_plan(smaller, plan)
