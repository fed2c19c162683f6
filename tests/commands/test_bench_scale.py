"""`lit-prune bench scale` on a folder that is small enough to be searched in earnest."""

import pytest

from lit_prune.__main__ import main
from lit_prune.evaluation.scale import MODES
from lit_prune.evaluation.scale_costs import free_memory


@pytest.mark.skipif(free_memory() is None, reason="reads /proc of Linux")
def test_predictions_stand_beside_what_was_measured(folder, tmp_path, capsys):
    sizes = ["--window=16", "--num_windows=4", "--device=cpu", f"--output={tmp_path / 'table.md'}"]
    assert main(["bench", "scale", folder, *sizes, "--measured_tokens=16"]) == 0
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {folder} | {mode} |" in text for mode in MODES)
    assert main(["bench", "scale", folder, *sizes, "--check=true", "--modes=[one_shot]"]) == 0
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()]
    assert [row[2] for row in rows[2:]] == [
        "dense passes",
        "seconds, by simulated counts",
        "seconds, by the search's own counts",
        "peak, MB",
    ]
    assert float(rows[2][3]) == float(rows[2][4]) > 0


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
