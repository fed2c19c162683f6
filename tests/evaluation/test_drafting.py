"""Drafts counted against the lengths of passes, and forecasts against the formula and hand-made times."""

import pytest
import torch

import lit_prune
from lit_prune.anatomy import find_sublayers
from lit_prune.costs import measure_passes
from lit_prune.errors import DataError, LitPruneError, MeasureError
from lit_prune.evaluation import compare_drafts, drafting, forecast, forecasts, predicted_speedup
from lit_prune.plan import SublayerId
from tests.pruning.test_speculative import greedily, plan_of
from tests.tiny import tiny_model

PROMPTS = torch.randint(3, 100, (3, 10), generator=torch.Generator().manual_seed(0))
NEW = 12


def dense(**settings):
    return tiny_model("llama", eos_token_id=None, **settings)


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_what_was_drafted_and_accepted_is_that_of_the_passes(num_tokens):
    model = dense()
    draft = lit_prune.speculative(model, plan_of(model, ["mlp.1"]), num_tokens=num_tokens)
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    alone, found = compare_drafts(model, {"own": draft}, PROMPTS[:1], new_tokens=NEW, warmup=0)
    own = lengths[NEW:]
    assert lengths[:NEW] == [10, *[1] * (NEW - 1)]
    assert (alone.written, alone.passes, alone.drafted, alone.accepted) == (NEW, NEW, 0, 0)
    assert found["own"].passes == len(own)
    assert found["own"].drafted == sum(own) - 10 - (len(own) - 1)
    assert found["own"].accepted == NEW - len(own)
    assert found["own"].tokens_per_pass == NEW / len(own)
    # The draft's own likeliest tokens along the text that the model writes, counted a pass at a time.
    text, place, accepted = greedily(model, PROMPTS[:1])[0], 10, 0
    with torch.no_grad():
        same = draft(input_ids=text[None], use_cache=False).logits[0].argmax(-1)[:-1] == text[1:]
    while place < 10 + NEW:
        run = 0
        while run < min(num_tokens, 10 + NEW - place - 1) and same[place - 1 + run]:
            run += 1
        accepted, place = accepted + run, place + run + 1
    assert found["own"].accepted == accepted


def test_turns_are_paired_and_warmup_does_not_count(monkeypatch):
    model = dense()
    draft = lit_prune.speculative(model, plan_of(model), num_tokens=2)
    # Alone 3 seconds a text, with the draft 1, then 2 and 3 in the last turns; nothing is read twice.
    readings = iter([0, 9, 0, 9] + [each for seconds in (1, 2, 3) for each in (0, 3, 0, seconds)])
    monkeypatch.setattr(drafting, "now", lambda _: float(next(readings)))
    alone, found = compare_drafts(model, {"own": draft}, PROMPTS, new_tokens=4, warmup=1)
    assert alone.seconds == (3.0, 3.0, 3.0)
    assert found["own"].seconds == (1.0, 2.0, 3.0)
    assert alone.tokens_per_second == 12 / 9
    speedup = found["own"].times_as_fast(alone)
    assert (speedup.ratio, speedup.low, speedup.high) == (1.5, 1.0, 3.0)


def test_other_text_is_an_error_unless_rounding_explains_it(monkeypatch):
    model = dense()
    draft = lit_prune.speculative(model, plan_of(model), num_tokens=2)
    write = drafting._write

    def wrong(into, network, assistant, prompt, new_tokens):
        text = write(into, network, assistant, prompt, new_tokens)
        if assistant is not None:
            text[0, 12] = 127 - text[0, 12]
        return text

    monkeypatch.setattr(drafting, "_write", wrong)
    with pytest.raises(MeasureError, match=r"with own token 12 of a text is \d+, without it \d+, whose logits are"):
        compare_drafts(model, {"own": draft}, PROMPTS, new_tokens=4)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    _, found = compare_drafts(model, {"own": draft}, PROMPTS, new_tokens=4)
    assert found["own"].ties == len(PROMPTS)


def test_what_cannot_be_compared_is_refused():
    model = dense()
    with pytest.raises(DataError, match="no draft"):
        compare_drafts(model, {}, PROMPTS)
    with pytest.raises(DataError, match="exceed the context"):
        compare_drafts(model, {"own": model}, PROMPTS, new_tokens=1000)
    with pytest.raises(MeasureError, match="other has a vocabulary of 100 tokens, the model one of 128"):
        compare_drafts(model, {"other": dense(vocab_size=100)}, PROMPTS)


@pytest.mark.parametrize(("acceptance", "num_tokens", "draft_time"), [(0.8, 5, 0.1), (0.5, 1, 0.9), (0.0, 3, 0.2)])
def test_the_formula_is_leviathans(acceptance, num_tokens, draft_time):
    expected = (1 - acceptance ** (num_tokens + 1)) / ((1 - acceptance) * (num_tokens * draft_time + 1))
    assert predicted_speedup(acceptance, num_tokens, draft_time) == pytest.approx(expected)
    assert predicted_speedup(1.0, num_tokens, draft_time) == (num_tokens + 1) / (num_tokens * draft_time + 1)


@pytest.mark.parametrize("agreement", ["greedy", "sampling"])
def test_forecasts_are_of_every_front(agreement, monkeypatch):
    model, names = dense(), ["mlp.1", "attention.2", "mlp.3"]
    batches = [{"input_ids": PROMPTS}]
    priced = forecast.price

    def price(network, of, num_positions):
        found = priced(network, "params", num_positions=num_positions)
        seconds = {each: 1.0 if each.kind == "mlp" else 2.0 for each in find_sublayers(network).ids}
        return type(found)("latency", 16.0, "seconds", seconds)

    monkeypatch.setattr(forecast, "price", price)
    monkeypatch.setattr(forecast, "measure_passes", lambda *_, most_tokens, **__: [1.0] * most_tokens)
    rows = forecasts(plan_of(model, names), model, batches, agreement=agreement)
    assert [row.draft_time for row in rows] == [15 / 16, 13 / 16, 12 / 16]
    with torch.no_grad():
        p = model(input_ids=PROMPTS).logits[:, :-1].softmax(-1)
        for number, row in enumerate(rows, start=1):
            draft = lit_prune.speculative(model, plan_of(model, names[:number]))
            q = draft(input_ids=PROMPTS).logits[:, :-1].softmax(-1)
            same = p.argmax(-1) == q.argmax(-1) if agreement == "greedy" else torch.minimum(p, q).sum(-1)
            assert row.acceptance == pytest.approx(float(same.float().mean()), abs=1e-5)
            assert row.num_steps == number
            best = max(
                range(1, 13), key=lambda tokens, row=row: predicted_speedup(row.acceptance, tokens, row.draft_time)
            )
            assert row.num_tokens == best
            assert row.speedup == row.ideal == predicted_speedup(row.acceptance, best, row.draft_time)
    assert len(find_sublayers(model).ids) == 8


def test_passes_over_several_tokens_are_timed_by_those_over_one():
    model, clock = dense(), {"time": 0.0}

    def run(_, args, kwargs):
        tokens = kwargs["input_ids"].shape[1]
        clock["time"] += 10 + tokens
        if kwargs.get("past_key_values") is not None:
            assert kwargs["past_key_values"].get_seq_length() == 20 - tokens
            assert "logits_to_keep" not in kwargs or tokens == 1

    model.register_forward_pre_hook(run, with_kwargs=True)
    found = measure_passes(model, length=20, most_tokens=4, repeats=2, clock=lambda _: clock["time"])
    assert found == [1.0, 12 / 11, 13 / 11, 14 / 11]
    with pytest.raises(MeasureError, match="a pass over 20 tokens goes on from a cache"):
        measure_passes(model, length=20, most_tokens=20)


def test_what_cannot_be_forecast_is_refused():
    model = dense()
    with pytest.raises(LitPruneError, match="removes nothing"):
        forecasts(plan_of(model, []), model, [{"input_ids": PROMPTS}])
    with pytest.raises(LitPruneError, match="agreement must be one of greedy, sampling; found 'loud'"):
        forecasts(plan_of(model), model, [{"input_ids": PROMPTS}], agreement="loud")
    assert SublayerId(1, "attention") in find_sublayers(model)
