"""The peak of a search, where the search is an allocation of a known size."""

import pytest
import torch

from benchmarks.memory import PROCESS, main, measure_search_memory
from lit_prune.errors import MeasureError
from tests.tiny import tiny_model

BATCHES = [{"input_ids": torch.zeros(2, size, dtype=torch.long)} for size in (5, 7)]


@pytest.mark.skipif(not PROCESS.exists(), reason="reads /proc of Linux")
def test_the_peak_is_seen_though_it_is_gone_at_the_end():
    def search():
        torch.ones(25_000_000)  # 100 MB, touched

    model = tiny_model("llama")
    found = measure_search_memory(model, BATCHES, search)
    assert found.growth == pytest.approx(100e6, abs=10e6)
    assert found.states == 4 * 7 * 32 * 4
    assert found.model == sum(each.numel() for each in model.parameters()) * 4
    assert measure_search_memory(model, BATCHES, lambda: None).growth < 10e6, "of this search, not of the one before"


def test_where_nothing_can_be_read_it_says_so():
    with pytest.raises(MeasureError, match="found meta"):
        measure_search_memory(tiny_model("llama").to("meta"), BATCHES, lambda: None)


@pytest.mark.skipif(not PROCESS.exists(), reason="reads /proc of Linux")
def test_the_memory_of_a_search_is_told(model_folder, tmp_path, capsys):
    sizes = ["--window=16", "--num_windows=4", "--batch_size=1", "--amount=0.15"]
    assert main([str(model_folder), "--device=cpu", f"--output={tmp_path / 'memory.md'}", *sizes]) == 0
    text = (tmp_path / "memory.md").read_text()
    assert text in capsys.readouterr().out
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines()[2:])
    assert rows["model"] == f"{45344 * 4 / 1e6:.1f} MB"
    assert rows["states of one sequence"] == f"{4 * 16 * 32 * 4 / 1e6:.1f} MB"
