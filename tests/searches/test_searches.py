import math

import pytest

from lit_prune.errors import BudgetError
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.searches import SEARCHES, Budget, Schedule

A, B, C = (Candidate.parse(name) for name in ("attention.0", "mlp.0", "attention.1"))
SIZES = {A: 100, B: 300, C: 100}


def test_progressive_scores_every_round_and_one_shot_once():
    calls = []

    def score(candidates):
        calls.append(list(candidates))
        return Scores({each: float(len(calls)) for each in candidates})

    history = []
    for _ in range(2):
        scores = SEARCHES.create("progressive")(score, [A, B], history)
        history.append(PruneStep(C, 1, scores={each.name: value for each, value in scores.importance.items()}))
    assert calls == [[A, B], [A, B]]
    one_shot = SEARCHES.create("one_shot")
    first = one_shot(score, [A, B, C], [])
    history = [PruneStep(A, 1, scores={each.name: value for each, value in first.importance.items()})]
    assert one_shot(score, [B, C], history).importance == {B: 3.0, C: 3.0}
    assert len(calls) == 3


def test_the_last_removal_overshoots_least_and_others_are_by_score():
    budget = Budget(0.2, 1000)
    assert budget.choose({A: 3.0, B: 1.0, C: 2.0}, SIZES, 0) is B, "nothing smaller than 200 could finish"
    assert budget.choose({A: 3.0, B: 1.0, C: 2.0}, SIZES, 100) is C
    assert budget.choose({A: 1.0, B: 2.0, C: 3.0}, SIZES, 0) is A, "does not finish, lowest score"
    assert Budget(0.2, 1000, last="lowest_score").choose({A: 3.0, B: 1.0, C: 2.0}, SIZES, 100) is B


@pytest.mark.parametrize("amount", [0, 1, -0.1, 1.5, float("nan")])
def test_amounts_outside_are_refused(amount):
    with pytest.raises(BudgetError, match="above 0 and below 1"):
        Budget(amount, 1000)


def test_unreachable_is_refused_with_what_can_be_had():
    with pytest.raises(BudgetError, match=r"cannot give 60.0% .* 50.0%"):
        Budget(0.6, 1000).require_reachable(sum(SIZES.values()), "sublayers")
    Budget(0.5, 1000).require_reachable(sum(SIZES.values()), "sublayers")
    Budget(0.6, 1000).require_reachable(sum(SIZES.values()), "sublayers", reached=100)


def reached(schedule, num_epochs, target=1000, total=5000, size=100):
    """Parameters removed before each epoch's training, with candidates of one size."""
    removed, history = 0, []
    for epoch in range(num_epochs):
        if schedule.is_due(epoch):
            quota = schedule.quota(epoch, num_epochs=num_epochs, target=target, total=total, reached=removed)
            steps = 0
            while quota.allows(removed, steps):
                removed, steps = removed + size, steps + 1
        history.append(removed)
    return history


def test_even_spread_starts_at_once_and_ends_before_the_last_epoch():
    assert reached(Schedule(), 5) == [200, 400, 600, 800, 1000]
    assert reached(Schedule(), 3) == [400, 700, 1000]
    assert reached(Schedule(), 1) == [1000]
    assert reached(Schedule(start_epoch=1, every_n_epochs=2), 5) == [0, 500, 500, 1000, 1000]


def test_counts_shares_and_callables():
    assert reached(Schedule(per_epoch=3), 5) == [300, 600, 900, 1000, 1000]
    assert reached(Schedule(per_epoch=0.1), 3) == [500, 1000, 1000]
    assert reached(Schedule(per_epoch=lambda epoch: epoch), 4) == [0, 100, 300, 600]
    assert reached(Schedule(per_epoch=lambda epoch: 0.02 * epoch), 3) == [0, 100, 300]


@pytest.mark.parametrize("value", [-1, 1.0, 2.5, True, "two"])
def test_a_bad_schedule_is_refused(value):
    with pytest.raises(BudgetError, match="removals per epoch"):
        Schedule(per_epoch=value)


@pytest.mark.parametrize(
    "wrong",
    [*({name: value} for name in ("start_epoch", "every_n_epochs") for value in (-1, 1.5, "1", None, math.nan))],
)
def test_epochs_are_whole(wrong):
    with pytest.raises(BudgetError, match="both whole; found"):
        Schedule(**wrong)


@pytest.mark.parametrize("schedule", [lambda: 1, lambda epoch, step: 1])
def test_a_callable_that_takes_no_epoch_is_refused_at_once(schedule):
    with pytest.raises(BudgetError, match="takes the epoch"):
        Schedule(per_epoch=schedule)


@pytest.mark.parametrize("wrong", ["x", [1], {}, math.nan, math.inf, -1])
def test_amounts_are_numbers(wrong):
    for limits in ((wrong, None), (None, wrong)):
        with pytest.raises(BudgetError, match="found"):
            Budget(limits[0], 1000, max_rise=limits[1])


def test_a_callable_that_returns_nonsense_is_refused_when_it_does():
    with pytest.raises(BudgetError, match="found None"):
        Schedule(per_epoch=lambda epoch: None).quota(0, num_epochs=2, target=1, total=1, reached=0)
