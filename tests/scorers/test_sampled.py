"""Shapley values against all permutations, ridge regression against another solver, and what both cost."""

import itertools
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_prune.errors import LitPruneError
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate, PrunePlan
from lit_prune.pruning import Pruner, prune
from lit_prune.scorers import SCORERS
from lit_prune.searches import Budget
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [{"input_ids": torch.randint(3, 128, (size, 20), generator=GENERATOR)} for size in (3, 2)]
NAMES = [(kind, block) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
CANDIDATES = [Candidate.parse(f"{kind}.{block}") for kind, block in NAMES]
BLOCKS = [Candidate.parse(f"block.{block}") for block in range(NUM_BLOCKS)]


def naive_losses(model, architecture, sets):
    found = {}
    for each in sets:
        with naive.zeroed(model, architecture, each):
            found[frozenset(each)] = naive.mean_loss(model, BATCHES)
    return found


def exact_shapley(model, architecture, players):
    subsets = [each for n in range(len(players) + 1) for each in itertools.combinations(players, n)]
    loss = naive_losses(model, architecture, subsets)
    values = dict.fromkeys(players, 0.0)
    orders = list(itertools.permutations(players))
    for order in orders:
        for number, player in enumerate(order):
            values[player] += loss[frozenset(order[: number + 1])] - loss[frozenset(order[:number])]
    return {player: value / len(orders) for player, value in values.items()}


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_sampled_shapley_values_lie_within_their_error_of_the_exact_ones(architecture):
    model = tiny_model(architecture)
    players = [NAMES[0], NAMES[3], NAMES[6]]
    candidates = [CANDIDATES[0], CANDIDATES[3], CANDIDATES[6]]
    exact = exact_shapley(model, architecture, players)
    what_if = WhatIf(model, BATCHES)
    scores = SCORERS.create("shapley", permutations=400)(what_if, candidates, [])
    for player, candidate in zip(players, candidates, strict=True):
        assert 0 < scores.errors[candidate] < 0.2
        assert abs(scores.importance[candidate] - exact[player]) < 4 * scores.errors[candidate]
    # Every order ends at the same model, so the sum is exact.
    assert sum(scores.importance.values()) == pytest.approx(sum(exact.values()), abs=1e-5)
    # Eight sets of three, however many permutations.
    assert what_if.num_head_evaluations == 8 * len(BATCHES)


def test_the_stated_error_is_that_of_repeated_draws():
    what_if = WhatIf(tiny_model("llama"), BATCHES)
    draws = [SCORERS.create("shapley", permutations=8, seed=n)(what_if, CANDIDATES[:4], []) for n in range(200)]
    for candidate in CANDIDATES[:4]:
        spread = statistics.stdev(each.importance[candidate] for each in draws)
        stated = math.sqrt(statistics.mean(each.errors[candidate] ** 2 for each in draws))
        assert stated == pytest.approx(spread, rel=0.2)


def test_all_candidates_may_go_and_the_count_is_what_was_asked_for():
    model = tiny_model("llama")
    what_if = WhatIf(model, BATCHES)
    scores = SCORERS.create("shapley", permutations=3)(what_if, CANDIDATES, [])
    with naive.zeroed(model, "llama", NAMES):
        empty = naive.mean_loss(model, BATCHES)
    assert sum(scores.importance.values()) == pytest.approx(empty - naive.mean_loss(model, BATCHES), abs=1e-5)
    assert what_if.num_head_evaluations <= (1 + 3 * (len(CANDIDATES) - 1) + 1) * len(BATCHES)
    again = SCORERS.create("shapley", permutations=3)(WhatIf(model, BATCHES), CANDIDATES[::-1], [])
    assert again.importance == scores.importance
    other = SCORERS.create("shapley", permutations=3, seed=1)(what_if, CANDIDATES, [])
    assert other.importance != scores.importance


def test_the_plan_states_the_errors(tmp_path):
    scorer = {"name": "shapley", "permutations": 2}
    plan = prune(tiny_model("llama"), BATCHES, amount=0.1, scorer=scorer, granularity="block", progress=False)
    assert set(plan.steps[0].errors) == {each.name for each in BLOCKS}
    assert PrunePlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert plan.scorer == {"name": "shapley", "permutations": 2, "seed": 0}


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_regression_equals_the_normal_equations_on_naive_losses(architecture, ridge):
    model = tiny_model(architecture)
    asked = []

    class Recording(WhatIf):
        def losses(self, candidates):
            asked.extend(candidates)
            return super().losses(candidates)

    scorer = SCORERS.create("regression", masks=30, drop=0.3, ridge=ridge)
    dealt = scorer._deal(len(CANDIDATES), 2, 0)
    found = scorer(Recording(model, BATCHES), CANDIDATES, []).importance
    order = sorted(CANDIDATES)
    names = [(each.sublayers[0].kind, each.block) for each in order]
    loss = naive_losses(model, architecture, [[names[i] for i in mask] for mask in dealt])
    # Every mask was asked for, and nothing else.
    assert {frozenset((e.kind, e.block) for e in each.sublayers) for each in asked} == set(loss)
    x = np.array([[float(i in mask) for i in range(len(order))] for mask in dealt])
    y = np.array([loss[frozenset(names[i] for i in mask)] for mask in dealt]) - naive.mean_loss(model, BATCHES)
    expected = np.linalg.pinv(x.T @ x + ridge * np.eye(len(order))) @ x.T @ y
    assert np.array([found[each] for each in order]) == pytest.approx(expected, abs=1e-4)


def test_where_losses_add_up_the_coefficients_are_the_rises():
    class Additive(WhatIf):
        def losses(self, candidates):
            rises = {sublayer: (-1) ** n * n / 10 for n, each in enumerate(CANDIDATES) for sublayer in each.sublayers}
            without = {each: 3.0 + sum(rises[one] for one in each.sublayers) for each in candidates}
            return replace(super().losses(CANDIDATES[:1]), base=3.0, without=without)

    scorer = SCORERS.create("regression", masks=40, drop=0.25, ridge=1e-6)
    found = scorer(Additive(tiny_model("llama"), BATCHES), CANDIDATES, []).importance
    assert [found[each] for each in CANDIDATES] == pytest.approx([(-1) ** n * n / 10 for n in range(8)], abs=1e-4)


@pytest.mark.parametrize(("num", "size", "masks"), [(8, 3, 8), (60, 6, 200), (5, 2, 3)])
def test_masks_take_every_candidate_about_equally_often(num, size, masks):
    dealt = SCORERS.create("regression", masks=masks)._deal(num, size, 0)
    counts = [sum(i in mask for mask in dealt) for i in range(num)]
    assert len(dealt) == masks
    assert all(len(mask) <= size for mask in dealt)
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= max(2, masks * size // num // 2)
    assert dealt != SCORERS.create("regression", masks=masks)._deal(num, size, 1)


def test_regression_costs_one_measurement_for_each_mask():
    what_if = WhatIf(tiny_model("llama"), BATCHES)
    SCORERS.create("regression", masks=12, drop=0.25)(what_if, CANDIDATES, [])
    assert what_if.num_head_evaluations <= (12 + 1) * len(BATCHES)


@pytest.mark.parametrize("scorer", [{"name": "shapley", "permutations": 2}, {"name": "regression", "masks": 12},
                                    "cosine", "taylor"])  # fmt: skip
@pytest.mark.parametrize("search", ["lazy", "one_shot"])
def test_a_search_that_asks_for_one_gets_its_score_among_all(scorer, search):
    options = {"name": scorer} if isinstance(scorer, str) else dict(scorer)
    if scorer == "taylor":
        options |= {"protect_first": 0, "protect_last": 0}
    model, calls = tiny_model("llama"), []
    made = SCORERS.create(options.pop("name"), **options)

    class Watched:
        together = True

        def __call__(self, what_if, candidates, history):
            calls.append(len(candidates))
            return made(what_if, candidates, history)

    pruner, what_if = Pruner(model, scorer=Watched(), search=search), WhatIf(model, BATCHES)
    step = pruner.step(what_if, Budget(0.5, pruner.num_parameters, last="lowest_score"))
    expected = made(WhatIf(tiny_model("llama"), BATCHES), CANDIDATES, []).importance
    # A lazy search takes the first that helps; the others, the best.
    best = step.removed if search == "lazy" else min(expected, key=expected.__getitem__)
    assert step.removed == best
    assert step.score == pytest.approx(expected[best], abs=1e-5)
    # Once on all tokens, and once on those that a lazy search screens on.
    assert calls == [len(CANDIDATES)] * (2 if search == "lazy" else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "shapley", "permutations": 1}, "2 permutations or more; found 1"),
        ({"name": "regression", "masks": 1}, "2 masks or more; found 1"),
        ({"name": "regression", "drop": 1.0}, "above 0 and below 1; found 1.0"),
        ({"name": "regression", "ridge": -1.0}, "ridge is 0 or more; found -1.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(LitPruneError, match=message):
        Pruner(tiny_model("llama"), scorer=options)


def test_overlaps_and_too_few_masks_are_refused_before_any_pass():
    model = tiny_model("llama")
    model.register_forward_hook(lambda *_: pytest.fail("measured"))
    for name in ("shapley", "regression"):
        with pytest.raises(LitPruneError, match="must not overlap; found block.1, mlp.1"):
            SCORERS.create(name)(WhatIf(model, BATCHES), [BLOCKS[1], CANDIDATES[3]], [])
    with pytest.raises(LitPruneError, match="3 masks of 1 leave some of 8 .* ask for 8 masks at least"):
        SCORERS.create("regression", masks=3)(WhatIf(model, BATCHES), CANDIDATES, [])
