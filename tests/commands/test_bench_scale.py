"""`lit-prune bench scale` on a folder, and how near its arithmetic is to a simulated search."""

import pytest

from benchmarks.simulator import blank_batches, simulate
from lit_prune.__main__ import main
from lit_prune.evaluation import MODES, estimated_work, shaped


def test_predictions_are_tables_of_every_mode(folder, tmp_path, capsys):
    sizes = ["--window=16", "--num_windows=4", f"--output={tmp_path / 'table.md'}"]
    assert main(["bench", "scale", folder, *sizes]) == 0
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert all(f"| {folder} | {mode} |" in text for mode in MODES)


@pytest.mark.parametrize("mode", MODES)
def test_the_estimate_is_near_a_simulated_search(mode):
    estimate = estimated_work(shaped("300m"), mode, amount=0.2, num_batches=3)
    simulated = simulate(lambda: shaped("300m"), blank_batches(3, 2, 16), mode, amount=0.2)
    if mode in ("one_shot", "one_shot, stream"):
        assert estimate.block_evaluations == simulated.block_evaluations
        assert estimate.head_evaluations == simulated.head_evaluations
    least, most = (1, 2) if mode == "lazy" else (0.7, 1.3)  # of lazy search twice what is simulated was seen
    for name in ("dense_passes", "block_evaluations", "head_evaluations"):
        assert least <= getattr(estimate, name) / getattr(simulated, name) <= most
    assert 0.7 <= estimate.num_removed / simulated.num_removed <= 1.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./9b"], "./9b"),
        (["8b", "--modes=[fast]"], "unknown mode 'fast'"),
        (["8b", "--amount=2"], "above 0 and below 1"),
        (["8b", "--window=0"], "window"),
    ],
)
def test_what_cannot_be_predicted_is_one_clear_line(capsys, arguments, message):
    assert main(["bench", "scale", *arguments]) == 2
    assert message in capsys.readouterr().err
