"""A block is timed only where it fits."""

import pytest
import torch

from benchmarks.block_timing import measure_block
from lit_prune.errors import LitPruneError
from tests.tiny import tiny_model


def make():
    return tiny_model("llama", num_hidden_layers=6)


def test_one_block_is_timed_and_only_where_it_fits(monkeypatch):
    timing = measure_block(make(), batch_size=2, window=16, device="cpu", dtype=torch.float32, repeats=1)
    assert timing.block > 0 < timing.head
    assert timing.tokens == 32
    monkeypatch.setattr("benchmarks.block_timing.free_memory", lambda: 1000)
    with pytest.raises(LitPruneError, match="are free"):
        measure_block(make(), batch_size=2, window=16, device="cpu", dtype=torch.float32)
