"""Scorers that measure otherwise than by losses, in two processes: the scores of one."""

import json

import pytest

from lit_prune.plan import PrunePlan
from tests.measure.test_shares import in_processes, search


@pytest.mark.parametrize(
    "scorer",
    [
        {"name": "cosine"},
        {"name": "relative_norm", "norm": "l1"},
        {"name": "kl"},
        {"name": "taylor", "protect_first": 1, "protect_last": 0},
        {"name": "shapley", "permutations": 2},
        {"name": "regression", "masks": 12},
        {"name": "angular"},
        {"name": "task"},
    ],
    ids=lambda scorer: scorer["name"],
)
def test_two_processes_find_the_scores_of_one(tmp_path, tokenizer, scorer):
    if scorer["name"] == "task":
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        rows = [{"prompt": f"the {word}", "completion": " fox"} for word in ("quick", "brown", "lazy")]
        (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
        scorer |= {"data": str(tmp_path / "task.jsonl"), "tokenizer": str(tmp_path / "tokenizer"), "batch_size": 2}
    # All states are kept, or the smaller ones of two processes would save a few blocks more.
    options = {"max_state_bytes": 1 << 30, "scorer": scorer, "amount": 0.2}
    options["granularity"] = "block" if scorer["name"] == "angular" else "sublayer"
    alone = PrunePlan.from_dict(search(**options)["plan"])
    found = in_processes(tmp_path, 2, lambda fabric: search(fabric, **options))
    first, second = (PrunePlan.from_dict(each["found"]["plan"]) for each in found)
    assert first == second
    for step, other in zip(first.steps, alone.steps, strict=True):
        assert step.removed == other.removed
        assert step.scores == pytest.approx(other.scores, rel=1e-3, abs=1e-5)
