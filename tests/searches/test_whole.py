"""Searches over whole sets: on made-up scores of which every set can be tried, and on a tiny model."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import BudgetError, DataError, LitPruneError
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.pruning import Pruner, prune
from lit_prune.searches import SEARCHES, Budget, SequenceLosses
from lit_prune.surgery import mute
from tests import naive
from tests.tiny import tiny_model

BLOCKS = 6
ALL = [Candidate.parse(f"{kind}.{block}") for block in range(BLOCKS) for kind in ("attention", "mlp")]
SIZES = {each: 1 if each.name.startswith("attention") else 2 for each in ALL}
BATCHES = [{"input_ids": torch.randint(3, 128, (2, 16), generator=torch.Generator().manual_seed(5))} for _ in range(4)]


class MadeUp:
    """Pairs of sublayers that are worse, or better, together than alone."""

    def __init__(self, seed, wanted, blocks=range(BLOCKS)):
        draw = torch.Generator().manual_seed(seed)
        self.alone = dict(zip(ALL, torch.rand(len(ALL), generator=draw).tolist(), strict=True))
        pairs = list(itertools.combinations(ALL, 2))
        self.both = dict(zip(pairs, (0.6 * torch.randn(len(pairs), generator=draw)).tolist(), strict=True))
        self.wanted, self.blocks, self.num_batches = wanted, list(blocks), 16
        self.asked = []

    def value(self, members):
        members = sorted(members)
        return sum(self.alone[each] for each in members) + sum(
            self.both[pair] for pair in itertools.combinations(members, 2)
        )

    def __call__(self, candidates, share=1.0, *, without=()):
        self.asked.extend((each.name, share) for each in candidates)
        found = {}
        for each in candidates:
            members = [
                one for one in ALL if set(one.sublayers) <= {*each.sublayers, *Candidate.together(without).sublayers}
            ]
            noise = 0 if share == 1 else 0.05 * math.sin(len(members) * 7 + each.block)
            found[each] = self.value(members) + noise
        return Scores(found)

    def losses(self, candidates, batches, *, without=()):
        """Sequences of 10 tokens, two a batch; what a set costs on one differs from its mean by a few hundredths."""
        tokens = {batch: np.full(2, 10.0) for batch in batches}

        def noise(batch, name):
            return np.random.default_rng([batch, *name.encode()]).standard_normal(2)

        def sums(name, value):
            return {batch: 10 * (5 + noise(batch, "text") + value + 0.03 * noise(batch, name)) for batch in batches}

        whole = [Candidate.together([*without, each]).name for each in candidates]
        self.asked.extend((name, batch) for name in whole for batch in batches)

        def value(*gone):
            whole = Candidate.together([*without, *gone])
            return sums(whole.name, self.value([one for one in ALL if set(one.sublayers) <= set(whole.sublayers)]))

        return SequenceLosses({each: value(each) for each in candidates}, tokens)

    def saved(self, candidate):
        return sum(SIZES[each] for each in ALL if set(each.sublayers) <= set(candidate.sublayers))

    def reaches(self, candidates):
        return self.saved(Candidate.together(candidates)) >= self.wanted

    def minimal_sets(self):
        for number in range(1, len(ALL)):
            for members in itertools.combinations(ALL, number):
                if self.reaches(members) and not any(self.reaches(set(members) - {each}) for each in members):
                    yield members


def decided(search, score, candidates=ALL):
    return sorted(search(score, candidates, []).importance)


@pytest.mark.parametrize("seed", range(4))
def test_evolution_finds_the_best_of_all_sets(seed):
    score = MadeUp(seed, wanted=5)
    best = min(score.minimal_sets(), key=score.value)
    assert decided(SEARCHES.create("evolutionary", generations=80), score) == sorted(best)


@pytest.mark.parametrize("seed", range(4))
def test_a_portfolio_finds_one_of_the_best_three_of_216_sets(seed):
    score = MadeUp(seed, wanted=5)
    search = SEARCHES.create("portfolio", seed=seed)
    exact = [members for members in score.minimal_sets() if score.saved(Candidate.together(members)) == 5]
    ranked = sorted(exact, key=score.value)
    assert decided(search, score) in [sorted(members) for members in ranked[:3]]
    measured = Counter((name, batch) for name, batch in score.asked if isinstance(batch, int))
    assert max(measured.values()) == 1, "nothing is measured twice"
    held_out = {name for name, batch in measured if batch in range(12, 16)}
    assert 1 <= len(held_out) <= 4, "what is held out judges the last few, and proposes nothing"


@pytest.mark.parametrize(("passes", "parents"), [(1.0, 2), (1e9, 4)])
def test_a_portfolio_has_more_parents_where_they_take_few_passes(passes, parents):
    score = MadeUp(0, wanted=5)
    SEARCHES.create("portfolio", passes=passes)(score, ALL, [])
    begun = {batches.start // 3 for _, batches in score.asked if isinstance(batches, range)}
    assert begun == set(range(parents)), "each on batches of its own, of the twelve that search"


def test_a_portfolio_saves_what_is_wanted_and_less_than_the_smallest_more():
    score = MadeUp(0, wanted=5)
    score.alone = {each: 0.0 if SIZES[each] == 2 else 5.0 for each in ALL}  # all would go by mlps alone, which save 6
    score.both = dict.fromkeys(score.both, 0.0)
    assert score.saved(Candidate.together(decided(SEARCHES.create("portfolio"), score))) == 5


def test_a_portfolio_ends_with_small_sublayers_where_a_large_one_is_too_much(monkeypatch):
    sizes = {each: 1 if each.name.startswith("attention") else 4 for each in ALL}
    monkeypatch.setattr("tests.searches.test_whole.SIZES", sizes)
    score, small = MadeUp(0, wanted=11), ALL[:6:2]
    # Alone every mlp is cheaper; three of the attentions are free together.
    score.alone = {each: 0.05 if sizes[each] == 4 else 0.1 if each in small else 0.5 for each in ALL}
    score.both = {pair: -0.2 if {*pair} <= {*small} else 0.0 for pair in score.both}
    found = decided(SEARCHES.create("portfolio"), score)
    assert score.value(found) == pytest.approx(min(map(score.value, score.minimal_sets())))
    assert {*small} < {*found}


def test_a_portfolio_of_one_set():
    assert decided(SEARCHES.create("portfolio", held_out=0.9), MadeUp(0, wanted=1), ALL[:1]) == ALL[:1]
    assert decided(SEARCHES.create("portfolio"), MadeUp(0, wanted=3), ALL[4:6]) == ALL[4:6]


def test_evolution_measures_many_on_few_tokens_and_few_on_all():
    score = MadeUp(0, wanted=5)
    SEARCHES.create("evolutionary", generations=10, offspring=8, initial=12)(score, ALL, [])
    shares = [share for _, share in score.asked]
    # Survivors of the first stage, and the parent, in each of the eleven selections.
    assert shares.count(1.0) == 2 + 10 * 3
    assert shares.count(0.125) <= 12 + 10 * 8
    assert all(share in (0.125, 1.0) for share in shares)


@pytest.mark.parametrize("start", ["one_shot", "progressive", {"name": "lazy", "patience": 2}, "evolutionary"])
@pytest.mark.parametrize("seed", range(4))
def test_refine_ends_where_no_swap_is_better(seed, start):
    score = MadeUp(seed, wanted=6)
    found = decided(SEARCHES.create("refine", start=start, sweeps=20, confirm=len(ALL)), score)
    assert score.reaches(found)
    for member in found:
        others = [each for each in found if each != member]
        for each in ALL:
            if each not in found and SIZES[each] <= SIZES[member] and score.reaches([*others, each]):
                assert score.value([*others, each]) >= score.value(found)


@pytest.mark.parametrize("wanted", [3, 6, 8])
def test_contiguous_takes_the_best_run_and_no_more_than_needed(wanted):
    score = MadeUp(1, wanted)
    pairs = [Candidate.parse(f"block.{block}") for block in range(BLOCKS)]
    number = -(-wanted // 3)
    runs = [pairs[first : first + number] for first in range(BLOCKS - number + 1)]

    def value(run):
        return score.value([each for each in ALL if each.block in [one.block for one in run]])

    assert decided(SEARCHES.create("contiguous"), score, pairs) == min(runs, key=value)
    assert decided(SEARCHES.create("contiguous", where="deepest"), score, pairs) == runs[-2]


def test_a_run_does_not_cross_what_may_not_go():
    pairs = [Candidate.parse(f"block.{block}") for block in (0, 1, 3, 4)]
    # Block 2 stays: what is left and right of it is no run.
    assert decided(SEARCHES.create("contiguous"), MadeUp(0, wanted=6), pairs) in (pairs[:2], pairs[2:])
    with pytest.raises(BudgetError, match="in a row"):
        SEARCHES.create("contiguous")(MadeUp(0, wanted=9), pairs, [])
    # It is gone from the model already: its neighbours are in a row.
    gone = MadeUp(0, wanted=12, blocks=[0, 1, 3, 4])
    assert decided(SEARCHES.create("contiguous"), gone, pairs) == pairs


@pytest.mark.parametrize("name", ["contiguous", "draws", "evolutionary", "portfolio", "refine"])
def test_the_set_is_decided_once_and_then_followed(name):
    score = MadeUp(2, wanted=5)
    search = SEARCHES.create(name)
    scores = search(score, ALL, [])
    first, *rest = sorted(scores.importance)
    asked = len(score.asked)
    history = [PruneStep.from_dict(PruneStep.recorded(first, scores).to_dict())]
    assert sorted(search(score, [each for each in ALL if each != first], history).importance) == rest
    assert len(score.asked) == asked


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("contiguous", {"where": "first"}),
        ("contiguous", {"spare": -1}),
        ("evolutionary", {"offspring": 0}),
        ("evolutionary", {"shares": [0.5, 0.25], "survivors": [2]}),
        ("evolutionary", {"survivors": [4, 2]}),
        ("draws", {"number": 1}),
        ("draws", {"of": "greedy"}),
        ("portfolio", {"swaps": -1}),
        ("portfolio", {"held_out": 1.0}),
        ("portfolio", {"shares": [0.5, 0.25]}),
        ("portfolio", {"survivors": [2]}),
        ("refine", {"screen": 0}),
        ("refine", {"start": "greedy"}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(LitPruneError, match="found|unknown search"):
        SEARCHES.create(name, **options)


class TestOnAModel:
    def pruned(self, search, amount=0.2, granularity="sublayer"):
        model = tiny_model("llama")
        pruner = Pruner(model, scorer="ppl", search=search, granularity=granularity)
        budget = Budget(amount, pruner.num_parameters)
        what_if = WhatIf(model, BATCHES)
        while budget.remaining(pruner.reached):
            pruner.step(what_if, budget)
        return pruner, naive.mean_loss(model, BATCHES)

    @pytest.mark.parametrize("search", ["contiguous", {"name": "evolutionary", "generations": 3}, "refine"])
    def test_the_score_of_the_set_is_the_loss_of_what_is_left(self, search):
        pruner, loss = self.pruned(search)
        scores = {step.score for step in pruner.plan.steps}
        assert list(scores) == [pytest.approx(math.exp(loss), rel=1e-5)]
        assert pruner.plan.num_removed_parameters >= 0.2 * pruner.num_parameters

    def test_refine_is_no_worse_than_where_it_started(self):
        _, start = self.pruned("progressive")
        _, refined = self.pruned({"name": "refine", "start": "progressive"})
        assert refined <= start + 1e-6

    def test_without_an_amount_there_is_no_set(self):
        model = tiny_model("llama")
        pruner = Pruner(model, scorer="ppl", search="refine")
        with pytest.raises(BudgetError, match="Refine decides on a whole set"):
            pruner.step(WhatIf(model, BATCHES), Budget(None, pruner.num_parameters, max_rise=0.5))

    def test_ties_of_a_portfolio_are_all_sets_that_text_does_not_tell_apart(self, tmp_path):
        journal, search = tmp_path / "journal.jsonl", {"name": "portfolio", "shares": [1.0], "survivors": [40]}
        plan = prune(tiny_model("llama"), BATCHES, amount=0.35, search=search, journal=journal, progress=False)
        losses = {}
        for line in map(json.loads, journal.read_text().splitlines()[1:]):
            losses.setdefault(frozenset(line["without"]), {})[str(line["batch"])[-1]] = np.array(line["nll"])
        chosen = frozenset(step.removed.name for step in plan.steps)
        sizes = {str(each.id): each.num_parameters for each in find_sublayers(tiny_model("llama")).sublayers}
        tied = []
        for members, own in losses.items():
            excess = sum(sizes[name] for name in members) - 0.35 * plan.model.num_parameters
            if len(own) < 3 or not 0 <= excess < min(sizes.values()):  # of a parent's search, or no whole set
                continue
            apart = np.concatenate([own[batch] - losses[chosen][batch] for batch in own])
            if apart.mean() <= 2 * apart.std() / math.sqrt(len(apart) - 1):
                tied.append(members)
        expected = {name: pytest.approx(np.mean([name in members for members in tied])) for name in sizes}
        assert len(tied) > 1, "or this test says little"
        assert plan.steps[0].chosen == expected

    def test_a_portfolio_judges_by_the_loss_on_what_was_held_out_and_goes_on(self, tmp_path):
        first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
        model = tiny_model("llama")
        plan = prune(model, BATCHES, amount=0.2, search="portfolio", journal=first, progress=False)
        (score,) = {step.score for step in plan.steps}
        assert score == pytest.approx(naive.mean_loss(model, BATCHES[3:]), rel=1e-5)
        excess = plan.num_removed_parameters - 0.2 * plan.model.num_parameters
        assert 0 <= excess < min(step.num_parameters for step in plan.steps)
        shares = plan.steps[0].chosen
        assert len(shares) == 8
        assert all(shares[step.removed.name] > 0 for step in plan.steps)
        assert sum(shares.values()) >= len(plan.steps) - 1e-9, "of one set or more that are as good"
        lines = first.read_text().splitlines(keepends=True)
        second.write_text("".join(lines[: len(lines) // 2]))
        again = prune(tiny_model("llama"), BATCHES, amount=0.2, search="portfolio", journal=second, progress=False)
        assert again.removed == plan.removed

        def measured(path):  # from other states on, it may be more blocks
            found = [json.loads(line) for line in path.read_text().splitlines()[1:]]
            return sorted((each["without"], str(each["batch"]), each["nll"]) for each in found)

        assert measured(second) == measured(first)

    def test_a_portfolio_finds_the_best_set_of_a_model_by_brute_force(self):
        model = tiny_model("llama", num_hidden_layers=5)
        text = naive.own_text(model, 32, 40)[torch.randperm(32, generator=torch.Generator().manual_seed(0))[:16]]
        batches = [{"input_ids": rows} for rows in text.split(2)]
        places = {each.id: model.get_submodule(each.path) for each in find_sublayers(model).sublayers}
        sizes = {name: sum(weight.numel() for weight in place.parameters()) for name, place in places.items()}
        wanted = 0.25 * sum(weight.numel() for weight in model.parameters())

        def saves(members):
            return sum(sizes[each] for each in members) >= wanted

        def loss(members):
            with mute(model, members):
                return naive.mean_loss(model, batches)

        every = [members for number in range(1, 8) for members in itertools.combinations(sizes, number)]
        least = [each for each in every if saves(each) and not any(saves({*each} - {one}) for one in each)]
        assert len(least) > 100
        best = min(least, key=loss)
        plan = prune(model, batches, amount=0.25, search="portfolio", compensate="none", progress=False)
        assert frozenset(plan.removed) == frozenset(best)

    @pytest.mark.parametrize("inner", ["progressive", {"name": "lazy", "screen": 1.0}])
    def test_of_several_draws_that_is_taken_which_is_best_on_text_that_none_saw(self, inner):
        draw = torch.Generator().manual_seed(6)
        batches = [{"input_ids": torch.randint(3, 128, (2, 12), generator=draw)} for _ in range(7)]
        options = {"amount": 0.08, "granularity": "attention", "progress": False}
        found = []
        for first in (0, 2, 4):  # a third of the six that search
            model = tiny_model("llama", num_hidden_layers=6)
            own = prune(model, batches[first : first + 2], search=inner, **options)
            found.append((naive.mean_loss(model, batches[6:]), frozenset(own.removed)))
        loss, best = min(found, key=lambda pair: pair[0])
        search = {"name": "draws", "of": inner, "number": 3, "held_out": 1 / 7}
        plan = prune(tiny_model("llama", num_hidden_layers=6), batches, search=search, **options)
        assert frozenset(plan.removed) == best
        assert plan.steps[0].score == pytest.approx(loss, rel=1e-5)
        counts = {f"attention.{block}": 0 for block in range(6)}
        counts.update(Counter(str(sublayer) for _, members in found for sublayer in members))
        assert plan.steps[0].chosen == {name: count / 3 for name, count in counts.items()}
        assert len(set(plan.steps[0].chosen.values())) > 2, "the draws disagree, or this test says little"

    def test_there_must_be_batches_to_hold_out(self):
        with pytest.raises(DataError, match="holds batches back to judge by, and there is one"):
            prune(tiny_model("llama"), BATCHES[:1], amount=0.2, search="portfolio", progress=False)
        with pytest.raises(DataError, match="8 draws need a batch each, and 3 are left to search on"):
            prune(tiny_model("llama"), BATCHES, amount=0.2, search="draws", progress=False)
