"""Searches side by side: exact search finds what naive search finds, and every count is of what ran."""

import pytest

from benchmarks.growth import costs
from benchmarks.search import main

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


SIZES = ["--window=16", "--num_windows=4", "--num_unseen=2", "--batch_size=1", "--amount=0.15"]


def test_searches_stand_side_by_side_with_the_naive_one_first(model_folder, tmp_path, capsys):
    assert main([str(model_folder), f"--output={tmp_path / 'table.md'}", *SIZES]) == 0
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == ["search", "---", "naive", "progressive", "lazy", "one_shot"]
    naive, progressive, lazy, one_shot = rows[2:]
    assert naive[4] == "1.000"
    assert max(float(one_shot[3]), float(lazy[3])) <= float(progressive[3]) < float(naive[3])
    assert naive[-1] == progressive[-1]
    orders = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("- "))
    assert orders["naive"] == orders["progressive"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--searches=[fast]"], "unknown search 'fast'"),
        (["--amount=2"], "above 0 and below 1"),
        (["--num_unseen=1000000"], "1000004 are asked for"),
        (["--device=cuda:99"], "finds no device cuda:99 here, only cpu"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(model_folder, capsys, arguments, message):
    assert main([str(model_folder), *SIZES, *arguments]) == 2
    assert message in capsys.readouterr().err
