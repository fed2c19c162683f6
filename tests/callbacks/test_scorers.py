"""The field's scorers within a training: the same scores as without one, and the training goes on as it was."""

import pytest
import torch
from torch.utils.data import DataLoader

from lit_prune import LitCausalLM
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate
from lit_prune.scorers import SCORERS
from tests.callbacks.test_sublayer_prune import TRAIN, VAL, pruning, trainer
from tests.tiny import tiny_model

OPTIONS = {"taylor": {"protect_first": 1, "protect_last": 0}, "shapley": {"permutations": 2}}
BATCHES = list(DataLoader(VAL, batch_size=4))


@pytest.mark.parametrize("healing", [False, True])
@pytest.mark.parametrize("scorer", ["kl", "cosine", "taylor", "shapley"])
def test_scores_are_those_of_the_model_and_training_goes_on(tmp_path, scorer, healing):
    options = OPTIONS.get(scorer, {})
    module = LitCausalLM(tiny_model("llama"), learning_rate=1e-3)
    callback = pruning(scorer={"name": scorer, **options}, healing=healing, save_to="pruned")
    trainer(tmp_path, callback, max_epochs=2).fit(
        module, DataLoader(TRAIN, batch_size=4), DataLoader(VAL, batch_size=4)
    )
    first, *others = callback.plan.steps
    assert others
    candidates = [Candidate.parse(name) for name in first.scores]
    expected = SCORERS.create(scorer, **options)(WhatIf(tiny_model("llama"), BATCHES), candidates, []).importance
    assert first.scores == pytest.approx({each.name: value for each, value in expected.items()}, rel=1e-3, abs=1e-6)
    assert (tmp_path / "pruned" / "prune_plan.json").exists()


@pytest.mark.parametrize("scorer", ["kl", "cosine", "taylor"])
def test_in_mixed_precision(tmp_path, scorer):
    module = LitCausalLM(tiny_model("llama"), learning_rate=1e-3)
    callback = pruning(scorer={"name": scorer, **OPTIONS.get(scorer, {})})
    fit = trainer(tmp_path, callback, max_epochs=1, precision="bf16-mixed")
    fit.fit(module, DataLoader(TRAIN, batch_size=4), DataLoader(VAL, batch_size=4))
    assert all(torch.isfinite(torch.tensor(list(step.scores.values()))).all() for step in callback.plan.steps)
    assert len(callback.plan.steps) >= 1
