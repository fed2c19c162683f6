"""Tasks and semi-structured sparsity: libraries that need not be there."""

import json
import math
import os
import random
import statistics
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lit_prune.errors import LitPruneError
from lit_prune.evaluation import require_tasks, task_scores, wanda_2_4
from tests.tiny import character_tokenizer, tiny_model

BATCHES = [{"input_ids": torch.randint(3, 128, (2, 16), generator=torch.Generator().manual_seed(5))}]


def test_without_the_libraries_there_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setitem(sys.modules, "torchao.sparsity", None)
    require_tasks([])
    with pytest.raises(LitPruneError, match=r"pip install 'lit-prune\[eval\]'"):
        require_tasks(["piqa"])
    with pytest.raises(LitPruneError, match=r"pip install 'lit-prune\[sparse\]'"):
        wanda_2_4(tiny_model("llama"), BATCHES)


def test_a_harness_that_seeds_everything_leaves_nothing_behind(monkeypatch):
    states = lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: E731

    def evaluate(**options):
        assert (os.environ["HF_ALLOW_CODE_EVAL"], os.environ["DISABLE_MULTIPROC"]) == ("1", "0")
        random.seed(0), np.random.seed(1234), torch.manual_seed(1234)  # as the harness does
        asked = ("num_fewshot", "apply_chat_template", "system_instruction")
        assert [options[name] for name in asked] == [5, False, "Be brief."]
        assert options["model"]["batch_size"] == "auto"
        return {"results": {"quiz": {"acc,none": 0.5, "acc_stderr,none": 0.1}}}

    harness = SimpleNamespace(simple_evaluate=evaluate)
    for name, module in {
        "lm_eval": harness,
        "lm_eval.models.huggingface": SimpleNamespace(HFLM=dict),
        "lm_eval.tasks": SimpleNamespace(TaskManager=lambda **_: SimpleNamespace(all_tasks=["quiz"])),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("DISABLE_MULTIPROC", "0")  # the user's own counts
    before, variables = states(), dict(os.environ)
    assert task_scores(
        tiny_model("llama"), character_tokenizer(), ["quiz"], run_code=True,
        num_fewshot=5, system_instruction="Be brief.", batch_size="auto",
    )["quiz"].value == 0.5  # fmt: skip
    assert states() == before
    assert dict(os.environ) == variables


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_accuracy_is_the_share_of_choices_with_the_lower_loss(tmp_path):
    pytest.importorskip("lm_eval")
    items = [
        {"question": f"{number} plus one is", "choices": ["odd", "even"], "answer": number % 2} for number in range(12)
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(each) + "\n" for each in items))
    task = {
        "task": "quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "quiz.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "quiz.yaml").write_text(json.dumps(task))
    model, tokenizer = tiny_model("llama"), character_tokenizer()
    score = task_scores(model, tokenizer, ["quiz"], include_path=str(tmp_path))["quiz"]

    def loss(text, choice):
        ids = tokenizer(f"{text} {choice}", return_tensors="pt", add_special_tokens=False)["input_ids"]
        start = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        logits = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        return -logits.gather(-1, ids[0, start:, None]).sum().item()

    right = [
        min((0, 1), key=lambda choice, each=each: loss(each["question"], each["choices"][choice])) == each["answer"]
        for each in items
    ]
    assert score.items == tuple(map(float, right))
    with pytest.raises(LitPruneError, match="has none; leave it out"):
        task_scores(model, tokenizer, ["quiz"], include_path=str(tmp_path), apply_chat_template=True)
    assert score.metric == "acc"
    assert score.value == pytest.approx(sum(right) / len(right))
    assert score.error == pytest.approx(statistics.stdev(map(float, right)) / math.sqrt(len(right)))
    assert 0 < score.value < 1
    with pytest.raises(LitPruneError, match="no task 'other'"):
        require_tasks(["other"], str(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_of_four_weights_are_zero_and_they_are_those_that_matter_least():
    pytest.importorskip("torchao")
    model, dense = tiny_model("llama"), tiny_model("llama")
    seen = []
    hook = dense.model.layers[0].mlp.gate_proj.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    dense(**BATCHES[0])
    hook.remove()
    share = wanda_2_4(model, BATCHES)
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                assert ((module.weight.reshape(-1, 4) != 0).sum(dim=1) == 2).all()
    weight = dense.model.layers[0].mlp.gate_proj.weight
    metric = (weight.abs() * seen[0].flatten(0, 1).norm(dim=0)).reshape(-1, 4)
    kept = torch.zeros_like(metric).scatter(1, metric.topk(2, dim=1).indices, 1).bool()
    assert torch.equal(model.model.layers[0].mlp.gate_proj.weight.reshape(-1, 4) != 0, kept)
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)
    zeros = sum((each == 0).sum().item() for each in model.parameters())
    assert share == zeros / sum(each.numel() for each in model.parameters())
