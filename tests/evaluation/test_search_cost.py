"""Searches side by side: exact search finds what naive search finds, and every count is of what ran."""

from tests.growth import costs

BLOCKS = 8


def compared(searches, num_hidden_layers=BLOCKS, amount=0.3):
    return costs(num_hidden_layers, searches, amount=amount)


def test_progressive_finds_what_naive_finds_for_at_most_six_tenths():
    reference, exact, lazy = compared(["naive", "progressive", "lazy"], num_hidden_layers=12, amount=0.2)
    assert exact.removed == reference.removed
    assert exact.ppl == reference.ppl
    assert exact.dense_passes <= 0.6 * reference.dense_passes
    assert lazy.dense_passes < 0.5 * exact.dense_passes
    assert lazy.share_removed >= 0.2


def test_naive_counts_every_pass():
    (cost,) = compared(["naive"])
    rounds = [2 * BLOCKS - number + 1 for number in range(len(cost.removed))]
    assert cost.head_evaluations == 4 * sum(rounds)
    assert cost.block_evaluations == 4 * BLOCKS * sum(rounds)
    assert cost.dense_passes == sum(rounds)
    assert cost.tokens == 4 * 2 * 20 * sum(rounds)


def test_lazy_grows_with_depth_and_not_with_its_square():
    costs = {depth: compared(["lazy"], num_hidden_layers=depth, amount=0.2)[0] for depth in (6, 12, 18)}
    for depth, cost in costs.items():
        # Scoring all once, by full passes, for every block that there is.
        assert cost.dense_passes <= 2 * depth
        assert 0 <= cost.num_disturbed <= len(cost.removed)
