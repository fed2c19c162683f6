"""Sizes of named shapes are those that were published; a block is timed only where it fits."""

import pytest
import torch

from lit_prune.errors import LitPruneError
from lit_prune.evaluation import Sizes, measure_block, shaped
from tests.tiny import tiny_model


def make():
    return tiny_model("llama", num_hidden_layers=6)


@pytest.mark.parametrize(("name", "billions"), [("7b", 6.738), ("8b", 8.030), ("70b", 70.554), ("405b", 405.853)])
def test_shapes_have_the_sizes_that_were_published(name, billions):
    sizes = Sizes.of(shaped(name))
    assert sizes.parameters / 1e9 == pytest.approx(billions, abs=0.001)


def test_one_block_is_timed_and_only_where_it_fits(monkeypatch):
    timing = measure_block(make(), batch_size=2, window=16, device="cpu", dtype=torch.float32, repeats=1)
    assert timing.block > 0 < timing.head
    assert timing.tokens == 32
    monkeypatch.setattr("lit_prune.evaluation.shapes.free_memory", lambda: 1000)
    with pytest.raises(LitPruneError, match="are free"):
        measure_block(make(), batch_size=2, window=16, device="cpu", dtype=torch.float32)
