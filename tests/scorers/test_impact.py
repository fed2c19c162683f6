"""NRI and RI against the naive computation, and what the options change."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_prune.anatomy import find_sublayers
from lit_prune.costs import Latency, candidate_shares, prices
from lit_prune.errors import LitPruneError
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate, PruneStep, create
from lit_prune.pruning import prune
from lit_prune.scorers import SCORERS
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model

BATCHES = [{"input_ids": torch.randint(3, 128, (4, 20), generator=torch.Generator().manual_seed(1))}]
CANDIDATES = [Candidate.parse(f"{kind}.{block}") for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]


def scored(model, scorer, history=(), batches=BATCHES, **options):
    return SCORERS.create(scorer, **options)(WhatIf(model, batches), CANDIDATES, history)


@pytest.mark.parametrize(("scorer", "by_share"), [("nri", True), ("ri", False)])
@pytest.mark.parametrize("own", [True, False])
def test_equals_the_naive_reference(scorer, by_share, own):
    model = tiny_model("llama")
    batches = [{"input_ids": naive.own_text(model, 8, 40)}] if own else BATCHES
    expected = naive.scores(model, "llama", batches, [], by_share=by_share)
    found = scored(model, scorer, batches=batches).importance
    assert {(c.sublayers[0].kind, c.block): score for c, score in found.items()} == pytest.approx(expected, abs=1e-5)
    # Removal hurts on the model's own text and helps on noise, so that both branches of NRI are covered.
    assert all(score > 0 for score in expected.values()) is own


def test_ppl_is_the_perplexity_without_the_candidate():
    model = tiny_model("gpt2")
    with naive.zeroed(model, "gpt2", [("mlp", 2)]):
        expected = math.exp(naive.mean_loss(model, BATCHES))
    assert scored(model, "ppl").importance[Candidate.parse("mlp.2")] == pytest.approx(expected, rel=1e-5)


def test_log_impact_is_the_difference_of_losses():
    model = tiny_model("llama")
    base = naive.mean_loss(model, BATCHES)
    with naive.zeroed(model, "llama", [("attention", 1)]):
        expected = naive.mean_loss(model, BATCHES) - base
    assert scored(model, "ri", impact="log").importance[CANDIDATES[2]] == pytest.approx(expected, abs=1e-6)


def test_original_baseline_is_the_loss_before_the_first_removal():
    model = tiny_model("llama")
    dense = naive.mean_loss(model, BATCHES) - 1.0
    history = [PruneStep(CANDIDATES[7], 1, nll_before=dense)]
    with naive.zeroed(model, "llama", [("attention", 1)]):
        expected = math.exp(naive.mean_loss(model, BATCHES)) / math.exp(dense) - 1
    found = scored(model, "ri", history, baseline="original").importance[CANDIDATES[2]]
    assert found == pytest.approx(expected, rel=1e-5)


def test_flops_of_a_small_mlp_by_hand():
    model = tiny_model("llama")
    ri, nri = scored(model, "ri").importance, scored(model, "nri", normaliser="flops").importance
    mlp = 2 * 3 * 32 * 64
    # One token after 20 others: scores and weighted values over 21 keys.
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16) + 2 * 2 * 21 * 32
    total = 4 * (mlp + attention) + 2 * 128 * 32
    for candidate, share in ((CANDIDATES[0], attention / total), (CANDIDATES[1], mlp / total)):
        expected = ri[candidate] / share if ri[candidate] > 0 else -share
        assert nri[candidate] == pytest.approx(expected, rel=1e-9)


def test_shares_of_experts_whole_and_active_by_hand():
    model = tiny_model("mixtral")  # 4 experts of 3 matrices 32 x 64, 2 for each token
    total = sum(each.numel() for each in model.parameters())
    expert, router, norm = 3 * 32 * 64, 4 * 32, 32
    candidate = Candidate.parse("mlp.1")

    def share(normaliser):
        return candidate_shares(model, [candidate], normaliser, num_positions=8)[candidate]

    assert share("parameters") == pytest.approx((4 * expert + router + norm) / total)
    assert share("active_parameters") == pytest.approx((2 * expert + router + norm) / (total - 4 * 2 * expert))
    ri = scored(model, "ri").importance[candidate]
    for normaliser in ("parameters", "active_parameters"):
        found = scored(model, "nri", normaliser=normaliser).importance[candidate]
        assert found == pytest.approx(ri / share(normaliser) if ri > 0 else -share(normaliser))


@pytest.mark.parametrize("name", ["nri", "acceptance"])
def test_a_budget_s_own_unit_is_that_unit_and_measured_seconds_are_its_shares(name, monkeypatch):
    def scores(of, normaliser):
        options = {"amount": 0.3, "of": of, "scorer": {"name": name, "normaliser": normaliser}, "progress": False}
        plan = prune(tiny_model("llama"), BATCHES, **options)
        return plan.steps[0].scores, plan.removed

    assert scores("flops", "budget") == scores("flops", "flops")
    model = tiny_model("llama")
    seconds = {sublayer: 0.1 + 0.01 * number for number, sublayer in enumerate(find_sublayers(model).ids)}
    monkeypatch.setattr(prices, "measure_latency", lambda *_, **__: Latency(2.0, seconds))
    found, impact = scores("latency", "budget")[0], scores("latency", "none")[0]
    for sublayer, took in seconds.items():
        lost = impact[str(sublayer)]
        assert found[str(sublayer)] == pytest.approx(lost / (took / 2.0) if lost > 0 else -took / 2.0)
    with pytest.raises(LitPruneError, match="for a search that has one"):
        scored(model, name, normaliser="budget")


def test_what_costs_no_cache_is_kept_when_the_cache_is_what_counts():
    model = tiny_model("llama")
    ri, nri = scored(model, "ri").importance, scored(model, "nri", normaliser="kv_cache").importance
    for candidate in CANDIDATES:
        share = 1 / 4 if "attention" in candidate.name else 0
        worth = ri[candidate] / share if share else math.inf
        assert nri[candidate] == pytest.approx(worth if ri[candidate] > 0 else -share)


def test_random_needs_no_measurement_and_repeats():
    model = tiny_model("llama")
    what_if = WhatIf(model, BATCHES)
    first = SCORERS.create("random", seed=3)(what_if, CANDIDATES, [])
    assert what_if.num_block_evaluations == 0
    assert first == SCORERS.create("random", seed=3)(what_if, CANDIDATES[::-1], [])
    assert first != SCORERS.create("random", seed=4)(what_if, CANDIDATES, [])


@pytest.mark.parametrize("options", [{"baseline": "dense"}, {"impact": "absolute"}, {"normaliser": "price"}])
def test_an_unknown_option_is_refused(options):
    with pytest.raises(LitPruneError, match="must be one of"):
        SCORERS.create("nri", **options)


@pytest.mark.parametrize("scorer", ["nri", {"name": "nri", "baseline": "original", "impact": "log"}, "ppl"])
@pytest.mark.parametrize("search", ["progressive", "lazy"])
def test_a_margin_is_the_error_that_the_jackknife_gives(scorer, search):
    """Of the difference from the lowest score, over sequences of different lengths that are left out in turn."""
    text = naive.own_text(tiny_model("llama"), 24, 16)
    labels = [rows.clone() for rows in text.split(4)]
    for number, rows in enumerate(labels):
        rows[:, : 2 * number] = -100
    batches = [{"input_ids": ids, "labels": rows} for ids, rows in zip(text.split(4), labels, strict=True)]
    plan = prune(tiny_model("llama"), batches, amount=0.05, scorer=scorer, search=search, progress=False)
    step = plan.steps[0]
    names = list(step.margins)
    measured = {*step.scores} if search == "progressive" else {name for name, n in step.measured.items() if n == 1}
    if len(measured) < 2:
        assert not names
        return
    assert set(names) == measured
    what_if = WhatIf(tiny_model("llama"), batches)
    found = create(SCORERS, scorer)
    losses = what_if.losses([Candidate.parse(name) for name in names])
    num = len(losses.tokens)

    def importance(kept):
        tokens = losses.tokens[kept].sum()
        part = replace(
            losses,
            base=float(losses.base_sequences[kept].sum() / tokens),
            without={each: float(sums[kept].sum() / tokens) for each, sums in losses.sequences.items()},
        )
        stand_in = SimpleNamespace(
            losses=lambda _: part, model=what_if.model, num_positions=16, processes=what_if.processes
        )
        scores = found(stand_in, list(losses.without), []).importance
        return np.array([scores[Candidate.parse(name)] for name in names])

    lowest = importance(slice(None)).argmin()
    parts = np.stack([importance([each for each in range(num) if each != left]) for left in range(num)])
    behind = parts - parts[:, lowest : lowest + 1]
    errors = np.sqrt(((behind - behind.mean(axis=0)) ** 2).sum(axis=0) * (num - 1) / num)
    assert list(step.margins.values()) == pytest.approx(errors.tolist(), rel=0.1, abs=1e-9)
    assert step.margins[names[lowest]] == 0
    assert set(step.ties) <= set(names) - {names[lowest]}
