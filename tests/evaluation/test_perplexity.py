"""Perplexity against torchmetrics, transformers' own loss and arithmetic by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchmetrics.text import Perplexity as ReferencePerplexity

from lit_prune.data import calibration_batches
from lit_prune.errors import DataError, MeasureError
from lit_prune.evaluation import TokenLoss, perplexity
from tests.tiny import ARCHITECTURES, tiny_model

WINDOWS = torch.randint(128, (5, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_torchmetrics_and_transformers(architecture: str) -> None:
    model = tiny_model(architecture)
    found = perplexity(model, calibration_batches(WINDOWS, 2))
    with torch.no_grad():
        output = model(input_ids=WINDOWS, labels=WINDOWS)
    metric = ReferencePerplexity()
    metric.update(output.logits[:, :-1], WINDOWS[:, 1:])
    assert found.nll == pytest.approx(float(output.loss), rel=1e-5)
    assert found.ppl == pytest.approx(float(metric.compute()), rel=1e-5)
    assert (found.num_tokens, found.num_windows, found.window) == (5 * 23, 5, 24)


def test_does_not_depend_on_batch_size() -> None:
    model = tiny_model("llama")
    found = [perplexity(model, calibration_batches(WINDOWS, size)).nll for size in (1, 2, 5)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
def test_masked_labels_and_padding_do_not_count(architecture: str) -> None:
    model = tiny_model(architecture)
    short = perplexity(model, [{"input_ids": WINDOWS[:1, :10]}])
    long = perplexity(model, [{"input_ids": WINDOWS[1:2]}])
    padded = WINDOWS[:2].clone()
    padded[0, 10:] = 1
    mask = torch.ones_like(padded)
    mask[0, 10:] = 0
    labels = padded.masked_fill(mask == 0, -100)
    expected = (short.nll * 9 + long.nll * 23) / 32
    for batch in (
        {"input_ids": padded, "attention_mask": mask},
        {"input_ids": padded, "attention_mask": mask, "labels": labels},
        {"input_ids": padded, "labels": labels},
    ):
        found = perplexity(model, [batch])
        assert found.num_tokens == 32
        assert found.nll == pytest.approx(expected, rel=1e-5)


def test_mode_is_restored_and_dropout_is_off() -> None:
    model = tiny_model("opt", dropout=0.5).train()
    batches = calibration_batches(WINDOWS, 5)
    assert perplexity(model, batches) == perplexity(model, batches)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_predict() -> None:
    for batches in ([], [{"input_ids": WINDOWS, "labels": torch.full_like(WINDOWS, -100)}]):
        with pytest.raises(DataError, match="hold none"):
            perplexity(tiny_model("llama"), batches)
    with pytest.raises(DataError, match="input_ids"):
        perplexity(tiny_model("llama"), [{"tokens": WINDOWS}])


def test_broken_model() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(MeasureError, match="nan"):
        perplexity(model, calibration_batches(WINDOWS, 5))


def test_overflow_is_infinite() -> None:
    assert TokenLoss(nll=1000.0, num_tokens=1, num_windows=1, window=2).ppl == math.inf
