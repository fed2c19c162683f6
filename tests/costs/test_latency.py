"""Latency by a clock that only the model's own modules advance: no test looks at the machine's."""

import pytest
import torch

from lit_prune.anatomy import find_sublayers
from lit_prune.costs import WARMUP, Latency, kinds_of, measure_latency, price, prices
from lit_prune.errors import LitPruneError, MeasureError
from lit_prune.surgery import remove
from tests.tiny import NUM_BLOCKS, tiny_model

WHOLE, ATTENTION, MLP = 10.0, 3.0, 5.0


class Clock:
    """Advances by a fixed number whenever a module runs, and notes the lengths that the model was given."""

    def __init__(self, model, jitter=lambda call: 0.0):
        self.time, self.lengths, self._jitter = 0.0, [], jitter
        model.register_forward_pre_hook(self._whole, with_kwargs=True)
        for block in model.model.layers:
            self._add(block.self_attn, ATTENTION)
            self._add(block.mlp, MLP)

    def __call__(self, model):
        return self.time

    def _whole(self, module, args, kwargs):
        self.lengths.append(kwargs["input_ids"].shape[1])
        self.time += WHOLE + self._jitter(len(self.lengths))

    def _add(self, module, seconds):
        def advance(*_):
            self.time += seconds

        module.register_forward_pre_hook(advance)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_kind_is_measured_once_and_holds_for_all_of_its_kind(phase):
    model = tiny_model("llama").train()
    clock = Clock(model)
    found = measure_latency(model, phase=phase, batch=2, length=20, repeats=3, clock=clock)
    assert found.total == WHOLE + NUM_BLOCKS * (ATTENTION + MLP)
    assert {str(each): seconds for each, seconds in found.sublayers.items()} == {
        f"{kind}.{block}": seconds for block in range(NUM_BLOCKS) for kind, seconds in
        (("attention", ATTENTION), ("mlp", MLP))
    }  # fmt: skip
    turns = 3  # whole, without some attention, without some mlps
    timed = [1 if phase == "decode" else 20] * turns * (WARMUP + 3)
    assert clock.lengths == ([19] * turns if phase == "decode" else []) + timed
    assert model.training
    assert find_sublayers(model).removed == ()


def test_a_machine_that_slows_down_now_and_then_changes_nothing():
    model = tiny_model("llama")
    clock = Clock(model, jitter=lambda call: 100.0 * (call // 9 == 1))
    found = measure_latency(model, phase="prefill", length=8, repeats=7, clock=clock)
    assert found.total == WHOLE + NUM_BLOCKS * (ATTENTION + MLP)
    assert set(found.sublayers.values()) == {ATTENTION, MLP}


def test_windows_and_what_is_gone_make_kinds():
    model = tiny_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2)
    kinds = [[str(each) for each in kind] for kind in kinds_of(model, find_sublayers(model))]
    assert kinds == [["attention.0", "attention.1"], [f"mlp.{i}" for i in range(NUM_BLOCKS)],
                     ["attention.2", "attention.3"]]  # fmt: skip
    model = tiny_model("llama")
    remove(model, [each.id for each in find_sublayers(model).sublayers if each.id.kind == "attention"])
    clock = Clock(tiny_model("llama"))
    found = measure_latency(model, length=8, repeats=1, clock=clock)
    assert [str(each) for each in found.sublayers] == [f"mlp.{i}" for i in range(NUM_BLOCKS)]


@pytest.mark.parametrize("architecture", ["mistral", "opt", "gpt2", "mixtral"])
def test_decoding_goes_on_from_the_cache_in_every_turn(architecture):
    model = tiny_model(architecture)
    lengths = []

    def note(module, args, kwargs):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        lengths.append((kwargs["input_ids"].shape[1], cache.get_seq_length() if cache is not None else 0))

    model.register_forward_pre_hook(note, with_kwargs=True)
    found = measure_latency(model, length=128, repeats=2, clock=lambda model: float(len(lengths)))
    turns = 1 + len(kinds_of(model, find_sublayers(model)))
    assert lengths == [(127, 0)] * turns + [(1, 127)] * turns * (WARMUP + 2), "all of the context, and no more"
    assert len(found.sublayers) == 2 * NUM_BLOCKS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phase": "both"}, "must be prefill or decode; found 'both'"),
        ({"batch": 0}, "of 1 at least"),
        ({"length": 1}, "a length of 2 at least"),
        ({"length": 129}, "context holds 128"),
        ({"repeats": 0}, "of 1 at least"),
    ],
)
def test_what_cannot_be_timed_is_refused(options, message):
    model = tiny_model("llama")
    model.register_forward_hook(lambda *_: pytest.fail("measured"))
    with pytest.raises(MeasureError, match=message):
        measure_latency(model, **{"length": 8, **options})
    with pytest.raises(MeasureError, match="takes no time"):
        measure_latency(tiny_model("llama").to("meta"), length=8)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("flop", "must be one of params, flops, kv_cache, latency"),
        ({"phase": "decode"}, "must be one of"),
        ({"name": "flops", "length": 3}, "flops does not take length; it takes no options"),
        ({"name": "latency", "batch": "two"}, "batch of a latency must be whole numbers"),
        ({"name": "latency", "length": 0.5}, "length of a latency must be whole numbers"),
        ({"name": "latency", "lenght": 3}, "does not take lenght; it takes phase, batch, length, repeats"),
    ],
)
def test_unknown_units_and_options_are_refused(of, message):
    with pytest.raises(LitPruneError, match=message):
        price(tiny_model("llama"), of, num_positions=8)


def test_a_model_without_a_cache_has_none_to_save():
    model = tiny_model("llama")
    remove(model, [each.id for each in find_sublayers(model).sublayers if each.id.kind == "attention"])
    with pytest.raises(MeasureError, match="keeps no KV cache"):
        price(model, "kv_cache", num_positions=8)
    mlp, head = 2 * 3 * 32 * 64, 2 * 128 * 32
    assert price(model, "flops", num_positions=8).total == NUM_BLOCKS * mlp + head


def test_known_seconds_are_taken_under_the_same_conditions_alone(monkeypatch):
    calls = []

    def stub(model, **options):
        calls.append(options)
        return Latency(1.0, {each.id: 0.1 + len(calls) / 3 for each in find_sublayers(model).sublayers})

    monkeypatch.setattr(prices, "measure_latency", stub)
    model = tiny_model("llama")
    first = price(model, "latency", num_positions=16)
    assert calls == [{"phase": "decode", "batch": 1, "length": 16}]
    assert price(model, "latency", num_positions=16, known=first.measured) == first
    assert len(calls) == 1
    other = price(model, {"name": "latency", "phase": "prefill"}, num_positions=16, known=first.measured)
    assert len(calls) == 2
    assert other != first
    assert price(model.to(torch.bfloat16), "latency", num_positions=16, known=first.measured) != first
    assert price(model, "flops", num_positions=16).measured == {}
