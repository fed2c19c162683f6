"""Signs of damage, against distributions computed whole."""

import json

import pytest
import torch
import torch.nn.functional as F

from lit_prune.evaluation import (
    Prompt,
    Signs,
    Turn,
    alpaca_eval_outputs,
    answers,
    mt_bench_answers,
    references,
    signs,
)
from lit_prune.evaluation.damage import binned_divergence, repetition
from lit_prune.plan import SublayerId
from lit_prune.report import answers_markdown, signs_markdown
from lit_prune.surgery import remove
from tests.tiny import tiny_model

PROMPTS = [Prompt(81, ("Hello there",), "writing"), Prompt(82, ("What?", "And?"))]


def turn(tokens, *, ended=False):
    return Turn("", (5, 6), tuple(tokens), ended)


def test_repetition_counts_four_grams():
    assert repetition([1, 2, 3]) == 0
    assert repetition(range(10)) == 0
    assert repetition([1, 2] * 6) == pytest.approx(7 / 9)


def test_length_and_early_ends():
    dense = [[turn(range(20), ended=True)], [turn(range(8))]]
    own = [[turn(range(4), ended=True)], [turn([7] * 8)]]
    found = signs(tiny_model("llama"), own, dense)
    assert (found.tokens, found.ended, found.cut_short) == (6, 0.5, 0.5)
    assert found.repetition == pytest.approx((0 + 4 / 5) / 2)
    assert signs(tiny_model("llama"), own).cut_short is None


def test_agreement_and_divergence_are_those_of_whole_distributions(tokenizer):
    dense, pruned = tiny_model("llama"), tiny_model("llama")
    remove(pruned, [SublayerId(1, "attention"), SublayerId(2, "mlp")])
    said = answers(dense, tokenizer, PROMPTS, max_new_tokens=9)
    found = signs(pruned, answers(pruned, tokenizer, PROMPTS, max_new_tokens=9), said, references(dense, said))
    agreements, divergences = [], []
    for each in (one for turns in said for one in turns if one.tokens):
        ids = torch.tensor([[*each.context, *each.tokens]])
        with torch.no_grad():
            p, q = (
                F.log_softmax(model(ids).logits[0, len(each.context) - 1 : -1], dim=-1) for model in (dense, pruned)
            )
        agreements += (q.argmax(-1) == torch.tensor(each.tokens)).tolist()
        divergences.append(F.kl_div(q, p, reduction="none", log_target=True).sum(-1))
    assert 0 < found.agreement < 1
    assert found.agreement == pytest.approx(sum(agreements) / len(agreements))
    for place, value in enumerate(found.divergence):
        own = [float(row[place]) for row in divergences if place < len(row)]
        assert value == pytest.approx(sum(own) / len(own), rel=1e-3, abs=1e-5)


def test_a_model_agrees_with_itself(tokenizer):
    model = tiny_model("gpt2")
    said = answers(model, tokenizer, PROMPTS, max_new_tokens=9)
    found = signs(model, said, said, references(model, said))
    assert (found.agreement, found.cut_short) == (1, 0)
    assert max(found.divergence) < 1e-5


def test_fewer_tokens_give_a_lower_bound():
    p, q = (F.log_softmax(row, dim=-1) for row in torch.randn(2, 5, 100, generator=torch.manual_seed(0)))
    whole = (p.exp() * (p - q)).sum(-1)
    before = torch.zeros(5)
    for number in (1, 10, 50, 99):
        likely = p.topk(number).indices
        bound = binned_divergence(p.gather(1, likely), q.gather(1, likely))
        assert (bound <= whole + 1e-5).all()
        assert (bound >= before - 1e-5).all()
        before = bound
    assert torch.allclose(before, whole, atol=1e-4)


def test_judges_find_what_they_read():
    said = [["Hi \u00e9"], ["No", "Because"]]
    lines = [json.loads(line) for line in mt_bench_answers("org/m", PROMPTS, said, time=1.5).splitlines()]
    assert [each["question_id"] for each in lines] == [81, 82]
    assert [each["choices"][0]["turns"] for each in lines] == said
    assert {each["model_id"] for each in lines} == {"org/m"}
    assert len({each["answer_id"] for each in lines}) == 2
    entries = json.loads(alpaca_eval_outputs("org/m", PROMPTS, said))
    assert entries[1] == {"instruction": "What?", "output": "No", "generator": "org/m"}


def test_answers_stand_side_by_side_and_cannot_become_markup():
    page = answers_markdown(PROMPTS, {"dense": [["# big"], ["a", "b"]], "pruned": [["<b>x</b>"], ["c", ""]]})
    assert "## 81 (writing)" in page
    assert page.index("dense:\n\n> \\# big") < page.index("pruned:\n\n> \\<b\\>x\\</b\\>")
    assert "> And?" in page
    assert page.rstrip().endswith("> (nothing)")


def test_signs_are_a_table():
    rows = {"dense": Signs(20.0, 0.5, 0.01), "pruned": Signs(12.0, 0.25, 0.2, 0.125, 0.75, (0.2, 0.4))}
    dense, pruned = signs_markdown(rows).splitlines()[2:]
    assert dense == "| dense | 20.0 | 50% | 1.0% |  |  |  |"
    assert pruned == "| pruned | 12.0 | 25% | 20.0% | 12.5% | 75.0% | 0.300 |"
