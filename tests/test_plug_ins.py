"""Scorers, searches and compensations of a user's own: found before the model is loaded, checked before any removal."""

import sys
from dataclasses import replace

import pytest
import torch

from lit_prune import PrunePlan, prune
from lit_prune.__main__ import main
from lit_prune.errors import LitPruneError, MeasureError, ModelError
from lit_prune.plan import Candidate, Scores
from lit_prune.pruning import Pruner
from lit_prune.surgery import removed_sublayers
from tests.tiny import character_tokenizer, tiny_model

BATCHES = [{"input_ids": torch.randint(3, 100, (4, 20), generator=torch.Generator().manual_seed(1))}]
ATTENTION = {"amount": 0.1, "granularity": "attention", "progress": False}


class Own:
    """Deeper is less important; gives a change of that."""

    def __init__(self, change=lambda scores: scores):
        self.change = change
        self.weight = 2.5

    def __call__(self, what_if, candidates, history):
        return self.change(Scores({each: -float(each.block) for each in candidates}))


def own_function(what_if, candidates, history, sign=-1):
    return Scores({each: torch.tensor(sign * each.block) for each in candidates})


def put(value):
    return lambda scores: replace(scores, importance={**scores.importance, Candidate.parse("attention.2"): value})


WRONG = [
    (put(float("nan")), "score of attention.2 is nan, which is no number"),
    (put("0.5"), "score of attention.2 is '0.5'"),
    (put(None), "score of attention.2 is None"),
    (put(torch.zeros(2)), "score of attention.2 is tensor"),
    (lambda scores: dict(scores.importance), "gives lit_prune.plan.Scores; this one gave a dict"),
    (lambda scores: None, "this one gave a NoneType"),
    (lambda scores: replace(scores, importance=None), "4 of 4 are missing"),
    (lambda scores: replace(scores, base_nll=float("nan")), "loss of the model as it is is nan"),
    (lambda scores: replace(scores, nll={Candidate.parse("mlp.1"): float("nan")}), "loss without mlp.1 is nan"),
]


@pytest.mark.parametrize("part", ["scorer", "search"])
@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_scores_are_one_error_before_any_removal(part, change, message):
    model = tiny_model("llama")
    own = Own(change) if part == "scorer" else lambda score, candidates, history: change(score(candidates))
    with pytest.raises(MeasureError, match=message):
        prune(model, BATCHES, **{part: own}, **ATTENTION)
    assert not removed_sublayers(model)


def test_a_scorer_that_leaves_some_out_and_a_search_that_chooses_another_are_errors():
    few, other = {Candidate.parse("attention.0"): 0.1}, {Candidate.parse("mlp.0"): 0.1}
    with pytest.raises(MeasureError, match="the scorer gave no score of attention.1, attention.2, attention.3: 3 of 4"):
        prune(tiny_model("llama"), BATCHES, scorer=Own(lambda scores: Scores(few)), **ATTENTION)
    with pytest.raises(MeasureError, match="the search gave no score of attention.0, .*: 4 of 4 are missing"):
        prune(tiny_model("llama"), BATCHES, search=lambda *_: Scores(other), **ATTENTION)


@pytest.mark.parametrize("scorer", [own_function, Own, Own(), f"{__name__}.own_function", f"{__name__}.Own"])
def test_functions_classes_and_objects_score_by_themselves_or_by_their_path(scorer):
    plan = prune(tiny_model("llama"), BATCHES, scorer=scorer, **ATTENTION)
    assert [str(each) for each in plan.removed] == ["attention.3", "attention.2"]
    assert plan.scorer["name"] == (scorer if isinstance(scorer, str) else getattr(scorer, "__name__", "Own"))
    assert plan.scorer.get("weight") == (2.5 if "Own" in plan.scorer["name"] else None)
    PrunePlan.from_dict(plan.to_dict())


def test_options_reach_a_function():
    plan = prune(tiny_model("llama"), BATCHES, scorer={"name": f"{__name__}.own_function", "sign": 1}, **ATTENTION)
    assert [str(each) for each in plan.removed] == ["attention.0", "attention.1"]


@pytest.mark.parametrize(
    ("part", "spec", "message"),
    [
        ("scorer", 5, "cannot be called"),
        ("scorer", None, "cannot be called"),
        ("search", {"name": 5}, "the name of a search is text; found 5"),
        ("scorer", f"{__name__}.BATCHES", "cannot be called"),
        ("compensate", 5, "cannot be called"),
        ("scorer", f"{__name__}.missing", "cannot import the scorer"),
    ],
)
def test_what_is_none_is_refused(part, spec, message):
    with pytest.raises(LitPruneError, match=message):
        Pruner(tiny_model("llama"), **{part: spec})


@pytest.mark.parametrize(
    ("said", "found"), [(None, {}), ({"a": 1}, {"a": 1}), (3, ModelError), ({"a": set()}, ModelError)]
)
def test_a_compensation_may_be_a_function_and_say_nothing(said, found):
    def own(what_if, sublayer):
        return said

    if found is ModelError:
        with pytest.raises(ModelError, match="compensation returns"):
            prune(tiny_model("llama"), BATCHES, compensate=own, **ATTENTION)
        return
    plan = prune(tiny_model("llama"), BATCHES, compensate=own, **ATTENTION)
    assert list(plan.steps[0].compensation.values()) == [found]


def test_a_module_beside_the_work_is_found_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    (tmp_path / "beside_the_work.py").write_text("def own(what_if, candidates, history): ...\n")
    (tmp_path / "broken_beside.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    before = list(sys.path)
    tiny_model("llama").save_pretrained("dense")
    character_tokenizer().save_pretrained("dense")

    def load(*_, **__):
        raise ModelError("the model is loaded")

    monkeypatch.setattr("lit_prune.loading.models.load", load)
    for name, message in (
        ("beside_the_work.own", "the model is loaded"),
        ("broken_beside.own", "ZeroDivisionError"),
        ("nothing_beside.own", "No module named"),
    ):
        assert main(["prune", "dense", "--output", "out", "--scorer", name]) == 2
        assert message in capsys.readouterr().err
    assert sys.path == before
