"""Searches in earnest on a folder that is small enough, and the random state that a whole model leaves as it was."""

import pytest
import torch

from benchmarks.block_timing import free_memory
from benchmarks.scale import filled_model, main
from lit_prune.evaluation import MODES
from tests.tiny import tiny_model


@pytest.mark.skipif(free_memory() is None, reason="reads /proc of Linux")
def test_predictions_stand_beside_what_was_measured(model_folder, tmp_path, capsys):
    folder = str(model_folder)
    sizes = ["--window=16", "--num_windows=4", "--device=cpu", f"--output={tmp_path / 'table.md'}"]
    assert main([folder, *sizes, "--measured_tokens=16"]) == 0
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {folder} | {mode} |" in text for mode in MODES)
    assert main([folder, *sizes, "--check=true", "--modes=[one_shot]"]) == 0
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()]
    assert [row[2] for row in rows[2:]] == [
        "dense passes",
        "seconds, by simulated counts",
        "seconds, by the search's own counts",
        "peak, MB",
    ]
    assert float(rows[2][3]) == float(rows[2][4]) > 0


def test_a_device_that_is_not_there_is_one_line(capsys):
    assert main(["300m", "--device=cuda:99"]) == 2
    assert "finds no device cuda:99 here, only cpu" in capsys.readouterr().err


def test_a_filled_model_draws_nothing_from_the_random_state():
    before = torch.get_rng_state()
    filled_model(tiny_model("llama"), "cpu", torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
