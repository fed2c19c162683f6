"""What holds for every registered scorer: name, option, file, progressive use."""

import json

import pytest
import torch
import yaml

from lit_prune import PrunePlan
from lit_prune.__main__ import main
from lit_prune.plan import Candidate
from lit_prune.pruning import apply_plan, prune
from lit_prune.scorers import SCORERS
from lit_prune.surgery import removed_sublayers
from tests.tiny import tiny_model

BATCHES = [{"input_ids": torch.randint(3, 100, (4, 20), generator=torch.Generator().manual_seed(1))}]
SMALL = {
    "taylor": {"protect_first": 1, "protect_last": 1},
    "magnitude": {"protect_first": 1, "protect_last": 1},
    "shapley": {"permutations": 2},
    "regression": {"masks": 12},
}
WHOLE = ("block_influence", "angular")


@pytest.fixture
def scorer(request, tmp_path, tokenizer):
    name = request.param
    options = dict(SMALL.get(name, {}))
    if name == "task":
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        (tmp_path / "task.jsonl").write_text(json.dumps({"prompt": "the quick", "completion": " brown fox"}))
        options = {"data": str(tmp_path / "task.jsonl"), "tokenizer": str(tmp_path / "tokenizer")}
    return {"name": name, **options}


@pytest.mark.parametrize("scorer", list(SCORERS), indirect=True)
@pytest.mark.parametrize("granularity", ["sublayer", "block"])
def test_prunes_progressively_and_its_plan_applies(scorer, granularity):
    if granularity == "sublayer" and scorer["name"] in WHOLE:
        pytest.skip("defined for blocks")
    options = {"scorer": scorer, "granularity": granularity, "amount": 0.25 if granularity == "sublayer" else 0.4}
    plan = prune(tiny_model("llama", num_hidden_layers=6), BATCHES, progress=False, **options)
    first, second = plan.steps[:2]
    left = set(second.scores)
    assert set(first.scores) - left == {first.removed.name}
    # Measured again on the smaller model. Sizes of weights stay, and so does the stream before what was removed.
    again = any(second.scores[name] != first.scores[name] for name in left)
    behind = any(Candidate.parse(name).block > first.removed.block for name in left)
    assert again is (scorer["name"] != "magnitude") or not behind
    copy = tiny_model("llama", num_hidden_layers=6)
    apply_plan(copy, PrunePlan.from_dict(plan.to_dict()))
    assert set(removed_sublayers(copy)) == set(plan.removed)


@pytest.mark.parametrize("scorer", ["shapley", "cosine"], indirect=True)
@pytest.mark.parametrize("way", ["option", "file"])
def test_from_the_command_line_and_from_a_file(scorer, way, tmp_path, tokenizer):
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog and runs away. " * 10)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"scorer": scorer}))
    given = ["--scorer", json.dumps(scorer)] if way == "option" else ["--config", str(tmp_path / "settings.yaml")]
    small = ["--data", str(tmp_path / "text.txt"), "--window", "32", "--num_windows", "2", "--amount", "0.1"]
    assert main(["prune", str(tmp_path / "tiny"), "--output", str(tmp_path / "out"), *small, *given]) == 0
    plan = PrunePlan.load(tmp_path / "out")
    assert {name: plan.scorer[name] for name in scorer} == scorer
    assert set(plan.steps[0].errors) == (set(plan.steps[0].scores) if scorer["name"] == "shapley" else set())
