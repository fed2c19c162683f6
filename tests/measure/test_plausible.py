"""A hint where the dense model knows less than nothing of the text."""

import math
import warnings

import pytest
import torch

from lit_prune import prune
from lit_prune.__main__ import main
from tests.callbacks.test_sublayer_prune import loaders, module, pruning, trainer
from tests.tiny import VOCAB_SIZE, tiny_model

BATCHES = [{"input_ids": torch.randint(3, VOCAB_SIZE, (2, 20), generator=torch.Generator().manual_seed(1))}]
HINT = f"the dense model's perplexity is [0-9,]+, worse than that of a guess among all {VOCAB_SIZE} tokens"


def flat():
    """All logits alike but for a trace: a loss of ln(vocabulary), less what little the model knows."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-4)
        nll = float(model(**BATCHES[0], labels=BATCHES[0]["input_ids"]).loss)
        model.lm_head.weight.mul_(1 if nll < math.log(VOCAB_SIZE) else -1)
    return model


def test_prune_hints_once_and_only_where_a_guess_is_better():
    with pytest.warns(UserWarning, match=HINT) as told:
        prune(tiny_model("llama"), BATCHES, amount=0.4, progress=False)
    assert sum("a guess" in str(each.message) for each in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(flat(), BATCHES, amount=0.4, progress=False)


def test_the_callback_hints(tmp_path):
    with pytest.warns(UserWarning, match=HINT):
        trainer(tmp_path, pruning(), max_epochs=1).fit(module(), *loaders())


def test_evaluate_hints_at_dense_models_alone(tmp_path, model_folder, text):
    options = ["--texts", f"[{text}]", "--window", "32", "--num_windows", "2", "--device", "cpu"]
    with pytest.warns(UserWarning, match=HINT):
        assert main(["evaluate", str(model_folder), *options]) == 0
    pruned = ["--amount", "0.2", "--data", str(text), "--window", "32", "--num_windows", "2"]
    assert main(["prune", str(model_folder), "--output", str(tmp_path / "pruned"), *pruned]) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the dense model's perplexity")
        assert main(["evaluate", str(tmp_path / "pruned"), *options]) == 0
