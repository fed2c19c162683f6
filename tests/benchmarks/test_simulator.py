"""Counts by simulation are those of the real search."""

import pytest
import torch

from benchmarks import simulator
from lit_prune import prune
from lit_prune.evaluation import MODES
from lit_prune.surgery import mute
from tests.tiny import tiny_model

BATCHES = [
    {"input_ids": each} for each in torch.randint(3, 128, (2, 3, 16), generator=torch.Generator().manual_seed(0))
]


def make():
    return tiny_model("llama", num_hidden_layers=6)


def losses_of(model):
    """The real ones, by transformers' own loss of the muted model."""

    def loss(gone, batch):
        ids = BATCHES[batch]["input_ids"]
        with torch.no_grad(), mute(model, sorted(gone)):
            return model(input_ids=ids, labels=ids, use_cache=False).loss.double().item()

    return loss


@pytest.fixture
def real_losses(monkeypatch):
    monkeypatch.setattr(simulator, "DrawnLosses", lambda *_, **__: losses_of(make()))


def modes(*, in_one_pass):
    found = [(mode, search) for mode, (search, one_pass) in MODES.items() if one_pass == in_one_pass]
    return pytest.mark.parametrize(("mode", "search"), found, ids=[mode for mode, _ in found])


@modes(in_one_pass=False)
@pytest.mark.parametrize("max_state_bytes", [0, None, 10**9])
def test_the_work_of_a_search_is_that_of_the_real_one(real_losses, mode, search, max_state_bytes):
    work = simulator.simulate(make, BATCHES, mode, amount=0.3, max_state_bytes=max_state_bytes)
    plan = prune(make(), BATCHES, amount=0.3, search=search, max_state_bytes=max_state_bytes, progress=False)
    assert (work.num_removed, work.dense_passes) == (len(plan.steps), pytest.approx(plan.cost))


@modes(in_one_pass=True)
def test_the_work_in_one_pass_is_that_of_the_real_search(real_losses, mode, search):
    work = simulator.simulate(make, BATCHES, mode, amount=0.3)
    # Losses are no similarities of states: as many removals of other sublayers.
    plan = prune(make(), BATCHES, amount=0.3, search=search, scorer="cosine", progress=False)
    assert work.dense_passes == (1 if search == "one_shot" else work.num_removed)
    assert plan.cost == (1 if search == "one_shot" else len(plan.steps))
