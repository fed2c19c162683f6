"""Lazy search over made-up models, whose scores are known for every set of removals and every share of the tokens."""

import math
import random
from dataclasses import replace

import pytest

from lit_prune.errors import LitPruneError
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.searches import SEARCHES, Lazy

BLOCKS = 12
ALL = [Candidate.parse(f"{kind}.{block}") for block in range(BLOCKS) for kind in ("attention", "mlp")]


class Model:
    """Scores that move by a factor of up to `local` near a removal, and of up to `elsewhere` farther off.

    On a share of the tokens a score is off by an amount that belongs to the candidate, and by a little that does not.
    """

    def __init__(self, seed, *, local=1.5, elsewhere=1.02, bias=0.4):
        self.seed = seed
        self.local, self.elsewhere, self.bias = local, elsewhere, bias
        self.full = self.part = 0

    def draw(self, *key):
        return random.Random(repr((self.seed, *key))).uniform(-1, 1)

    def value(self, candidate, gone):
        value = 5 * math.exp(1.2 * self.draw(candidate.name))
        for each in gone:
            near = abs(each.block - candidate.block) <= 2
            value *= (self.local if near else self.elsewhere) ** self.draw(candidate.name, each.name)
        return value

    def score(self, gone):
        def score(candidates, share=1.0):
            found = {}
            for each in candidates:
                value = self.value(each, gone)
                if share == 1.0:
                    self.full += 1
                else:
                    self.part += 1
                    value *= 1 + self.bias * self.draw("bias", each.name) + 0.02 * self.draw(len(gone), each.name)
                found[each] = value
            return Scores(found, 3.0, {each: 3.0 + value for each, value in found.items()})

        return score


def run(search, model, rounds=10):
    history = []
    for _ in range(rounds):
        gone = [step.removed for step in history]
        left = [each for each in ALL if each not in gone]
        scores = search(model.score(gone), left, history)
        choice = min(left, key=lambda each: (scores.importance[each], each))
        history.append(
            PruneStep(
                choice,
                1,
                score=scores.importance[choice],
                scores={each.name: value for each, value in scores.importance.items()},
                measured={each.name: share for each, share in scores.measured.items()},
                screened={each.name: value for each, value in scores.screened.items()},
                disturbed=scores.disturbed,
            )
        )
    return history


@pytest.mark.parametrize("seed", range(12))
def test_while_bounds_hold_it_removes_what_a_full_search_removes(seed):
    bounds = {"near": 0.3, "far": 1 / 1.06, "trust": 0.5, "patience": len(ALL)}
    full, lazy = Model(seed), Model(seed)
    expected = run(SEARCHES.create("progressive"), full)
    found = run(Lazy(**bounds), lazy)
    assert [step.removed for step in found] == [step.removed for step in expected]
    assert lazy.full < 0.5 * full.full


def test_the_removed_one_is_always_measured_on_all_tokens_and_the_plan_says_so():
    for step in run(Lazy(), Model(3)):
        assert step.measured[step.removed.name] == 1
        assert set(step.measured.values()) <= {0.25, 1.0}
        assert set(step.screened) == set(step.measured)


def test_it_goes_on_from_the_plan_alone():
    history = run(Lazy(), Model(5))
    again = [PruneStep.from_dict(step.to_dict()) for step in history[:6]]
    gone = [step.removed for step in again]
    left = [each for each in ALL if each not in gone]
    scores = Lazy()(Model(5).score(gone), left, again)
    assert {each.name: value for each, value in scores.importance.items()} == history[6].scores


def one_fell(fallen, value):
    """A round after mlp.0 went: one candidate has fallen from 4 to `value`, all others are as they were."""
    first = {each.name: 5.0 + each.block for each in ALL} | {"mlp.0": 1.0, fallen: 4.0}
    removed = Candidate.parse("mlp.0")
    swept = PruneStep(removed, 1, scores=first, measured=dict.fromkeys(first, 1.0), screened=first)
    history = [swept, *[replace(swept, measured={"attention.9": 1.0})] * 2]
    now = first | {fallen: value}
    asked = []

    def score(candidates, share=1.0):
        asked.extend((each.name, share) for each in candidates)
        return Scores({each: now[each.name] for each in candidates})

    scores = Lazy()(score, [each for each in ALL if each != removed], history)
    assert min(scores.importance, key=scores.importance.get).name == fallen
    return scores, asked


@pytest.mark.parametrize(
    ("fallen", "value", "surprises"), [("mlp.11", 3.9, False), ("mlp.11", 0.5, True), ("mlp.1", 0.5, False)]
)
def test_a_best_far_off_that_fell_below_its_bound_makes_it_screen_everything(fallen, value, surprises):
    scores, _ = one_fell(fallen, value)
    assert scores.disturbed == surprises
    assert (len(scores.measured) == len(ALL) - 1) == surprises


def test_who_lost_a_neighbour_is_screened_first_and_others_are_not():
    _, asked = one_fell("mlp.11", 3.9)
    assert asked.index(("mlp.1", 0.25)) < asked.index(("mlp.11", 1.0))
    assert {name for name, share in asked if share < 1} <= {"mlp.11", "attention.0", "mlp.1", "attention.1", "mlp.2",
                                                             "attention.2"}  # fmt: skip


def test_when_patience_is_out_what_is_left_is_taken_at_its_word():
    scores = {each.name: 10.0 + each.block for each in ALL} | {"mlp.5": 9.5, "mlp.6": 9.4, "mlp.7": 9.3}

    def score(candidates, share=1.0):
        asked.extend(each.name for each in candidates if share == 1)
        return Scores({each: scores[each.name] for each in candidates})

    asked: list[str] = []
    Lazy(trust=0.5, patience=len(ALL))(score, ALL, [])
    assert len(asked) > 10
    asked.clear()
    Lazy(trust=0.5, patience=2)(score, ALL, [])
    assert asked == ["mlp.7", "mlp.6"]


def test_scores_at_or_below_nothing_are_measured():
    def score(candidates, share=1.0):
        return Scores({each: -1.0 if each.name == "mlp.3" else 1.0 for each in candidates}, zero=0.0)

    scores = Lazy()(score, ALL, [])
    assert scores.measured[Candidate.parse("mlp.3")] == 1
    assert min(scores.importance, key=scores.importance.get).name == "mlp.3"


@pytest.mark.parametrize("options", [{"screen": 0}, {"near": 1.5}, {"trust": -1}, {"reach": -1}, {"patience": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(LitPruneError, match="found"):
        SEARCHES.create("lazy", **options)
