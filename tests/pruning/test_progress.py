"""What the bar of a search says, by a clock of our own."""

import io
import math
import sys

import pytest
import torch

from lit_prune import prune
from lit_prune.measure import WhatIf
from lit_prune.pruning import Pruner, expected_of, expected_search, progress_bar
from lit_prune.searches import Budget, Quota
from tests.tiny import tiny_model

BATCHES = [{"input_ids": torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(1))} for _ in range(2)]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def rounds(bar, clock, *removals):
    """Each (seconds that the round takes, what is reached then); None seconds: a journal knew it all."""
    for seconds, reached in removals:
        bar(0, 0 if seconds is None else 10, "mlp.0")
        clock.now += seconds or 0
        bar.removed(reached)


def test_time_left_is_by_what_was_reached_per_second(clock):
    with progress_bar("x", goal=100, shown=False, clock=clock) as bar:
        assert bar.seconds_left is None
        rounds(bar, clock, (10, 20))
        assert bar.seconds_left == 40
        clock.now += 15
        assert bar.seconds_left == 25, "the round that runs counts down"
        clock.now += 100
        assert bar.seconds_left == 0


def test_a_dear_first_round_is_not_taken_for_the_rule(clock):
    with progress_bar("x", goal=100, shown=False, clock=clock) as bar:
        rounds(bar, clock, (500, 10), (2, 20), (4, 30))
        assert bar.seconds_left == pytest.approx(70 * 6 / 20)


def two_sweeps(bar, clock):
    for done in (0, 20, 50):
        bar(done, 100, "mlp.0")
        clock.now += 30
    bar(0, 40, "mlp.1")
    clock.now += 6
    bar(10, 40, "mlp.1")


def test_the_first_round_tells_how_long_its_sweep_will_take(monkeypatch, clock):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("scoring", goal=100, clock=clock) as bar:
        two_sweeps(bar, clock)
    seen = stream.getvalue()
    assert "50% of a sweep, without mlp.0, about 01:00 left of it" in seen
    assert "25% of a sweep, without mlp.1, about 00:18 left of it" in seen


def test_what_is_expected_is_said_first_and_tells_the_time_of_all_before_the_first_removal(monkeypatch, clock):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("scoring", goal=100, clock=clock) as bar:
        bar.foresee(expected_search([1.0] * 8, 2.0, num_blocks=4, search="progressive"), 10)
        assert "scoring: about 11 dense passes over its text are expected" in stream.getvalue()
        two_sweeps(bar, clock)
    seen = stream.getvalue()
    # 450 blocks in all: after 50 in 60 s, 400 are left; after 60 in 96 s, 390.
    assert "50% of a sweep, without mlp.0, about 08:00 left" in seen
    assert "25% of a sweep, without mlp.1, about 10:24 left" in seen


@pytest.mark.parametrize(("search", "least", "most"), [("progressive", 0.7, 1.3), ("one_shot", 1, 1), ("lazy", 0.5, 2)])
@pytest.mark.parametrize("granularity", ["sublayer", "block", "mlp"])
def test_what_is_expected_is_near_what_runs(search, least, most, granularity):
    model = tiny_model("llama")
    pruner = Pruner(model, search=search, granularity=granularity)
    budget = Budget(0.3, pruner.num_parameters)
    what_if = WhatIf(model, BATCHES)
    expected = expected_of(pruner, Quota(budget.target), what_if)
    steps = [*pruner.steps(what_if, budget)]
    assert least <= expected.block_evaluations * len(BATCHES) / what_if.num_block_evaluations <= most
    assert abs(expected.num_removed - len(steps)) <= 1


def test_what_is_expected_of_a_portfolio_is_near_what_runs():
    model = tiny_model("llama", num_hidden_layers=16, hidden_size=16, intermediate_size=32)
    batches = [{"input_ids": rows} for rows in torch.randint(3, 128, (16, 8)).split(1)]
    pruner, what_if = Pruner(model, search="portfolio"), WhatIf(model, batches)
    budget = Budget(0.1, pruner.num_parameters)
    expected = expected_of(pruner, Quota(budget.target), what_if)
    steps = [*pruner.steps(what_if, budget)]
    assert 0.5 <= expected.block_evaluations * 16 / what_if.num_block_evaluations <= 2
    assert abs(expected.num_removed - len(steps)) <= 2


def test_a_search_says_ahead_what_is_expected(capsys):
    prune(tiny_model("llama"), BATCHES, amount=0.2)
    assert "scoring: about 11 dense passes over its text are expected" in capsys.readouterr().err
    prune(tiny_model("llama"), BATCHES, amount=0.2, progress=False)
    assert "expected" not in capsys.readouterr().err


def test_nothing_is_expected_where_nobody_can_tell():
    model = tiny_model("llama")
    what_if, quota = WhatIf(model, BATCHES), Quota(1000)
    for recipe in ({"scorer": "cosine"}, {"search": "evolutionary"}, {"scorer": "taylor"}):
        assert expected_of(Pruner(model, **recipe), quota, what_if) is None
    assert expected_of(Pruner(model), Quota(math.inf), what_if) is None
    assert expected_of(Pruner(model), Quota(math.inf, num_steps=2), what_if).num_removed == 2


def test_rounds_of_a_journal_say_nothing(clock):
    with progress_bar("x", goal=100, shown=False, clock=clock) as bar:
        rounds(bar, clock, (None, 10), (None, 20), (None, 30))
        assert bar.seconds_left is None
        rounds(bar, clock, (7, 40))
        assert bar.seconds_left == 42


def test_a_goal_that_nobody_knows_has_no_time(clock):
    with progress_bar("x", shown=False, clock=clock) as bar:
        rounds(bar, clock, (7, 40))
        assert bar.seconds_left is None


def pictures(monkeypatch, clock, goal, *removals):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("scoring", goal=goal, shown=True, clock=clock) as bar:
        rounds(bar, clock, *removals)
        bar(3, 4, "mlp.7")
    return stream.getvalue().split("\r")


def test_small_sweeps_do_not_move_the_bar_and_removals_do(monkeypatch, clock):
    seen = pictures(monkeypatch, clock, 200, (30, 20), (30, 50), (30, 90))
    last = next(each for each in reversed(seen) if "scoring" in each)
    assert "45%" in last
    assert "round 4, 75% of a sweep, without mlp.7, about 01:34 left" in last  # 110 at 70 a minute
    assert not any("75%" in each and "of a sweep" not in each for each in seen)
    assert not any("%" in each.partition("round")[0] for each in pictures(monkeypatch, clock, math.inf, (30, 20)))


@pytest.mark.parametrize("search", ["progressive", "lazy", "one_shot"])
@pytest.mark.parametrize("limit", [{"amount": 0.3}, {"max_rise": 0.2}, {"amount": 0.2, "of": "kv_cache"}])
def test_every_search_draws_to_its_end(capfd, search, limit):
    plan = prune(tiny_model("llama"), BATCHES, search=search, **limit)
    error = capfd.readouterr().err
    assert "scoring" in error
    assert f"round {len(plan.steps) + 2}" not in error


def test_what_is_done_in_one_sweep_counts_down_within_it(clock):
    with progress_bar("x", shown=False, clock=clock, in_one=True) as bar:
        bar(0, 100, "mlp.3")
        assert bar.seconds_left is None
        clock.now += 10
        bar(25, 100, "mlp.4")
        assert bar.seconds_left == 30
