"""Speed: the work that is timed, the order of turns, and the dense twin. No test looks at a clock's reading."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_prune.anatomy import cache_of, find_sublayers
from lit_prune.errors import DataError
from lit_prune.evaluation import Ideal, compare_speed, dense_twin, measure_footprint, speed, speedup
from lit_prune.plan import SublayerId
from lit_prune.surgery import remove
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, tiny_model


def pruned(architecture: str, *names: str) -> Any:
    model = tiny_model(architecture)
    remove(model, map(SublayerId.parse, names))
    return model


def watched(model: Any, log: list[Any], name: str) -> Any:
    """Record the length of every input, and the tokens that come out."""

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        log.append((name, kwargs["input_ids"].shape[1], output.logits[:, -1].argmax(dim=-1).tolist()))

    model.register_forward_hook(note, with_kwargs=True)
    return model


class TestCompareSpeed:
    def test_result_states_the_conditions(self) -> None:
        models = {"dense": tiny_model("llama"), "pruned": pruned("llama", "attention.0", "mlp.2")}
        found = compare_speed(models, prompt_tokens=8, new_tokens=3, batch=2, repeats=3)
        assert list(found) == ["dense", "pruned"]
        for result in found.values():
            assert result.prefill_seconds > 0
            assert result.decode_seconds_per_token > 0
            assert (result.batch, result.prompt_tokens, result.new_tokens, result.repeats) == (2, 8, 3, 3)
            assert (result.device, result.dtype) == ("cpu", "float32")

    def test_models_take_turns(self) -> None:
        log: list[Any] = []
        models = {name: watched(tiny_model("llama"), log, name) for name in ("a", "b")}
        compare_speed(models, prompt_tokens=8, new_tokens=2, repeats=2, warmup=1)
        prefills = [name for name, length, _ in log if length == 8]
        assert prefills == ["a", "b"] * 3
        assert [length for name, length, _ in log if name == "a"] == [8, 1, 1] * 3

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("gone", [(), ("attention.0",), tuple(f"attention.{block}" for block in range(NUM_BLOCKS))])
    def test_writes_what_generate_writes(self, architecture: str, gone: tuple[str, ...]) -> None:
        log: list[Any] = []
        model = watched(pruned(architecture, *gone), log, "it")
        model.generation_config.eos_token_id = None
        compare_speed({"it": model}, prompt_tokens=8, new_tokens=4, batch=2, repeats=1, warmup=0)
        written = torch.tensor([tokens for _, _, tokens in log]).T
        lengths = [length for _, length, _ in log]
        assert lengths == ([8, 9, 10, 11, 12] if len(gone) == NUM_BLOCKS else [8, 1, 1, 1, 1])
        prompt = torch.randint(128, (2, 8), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(prompt)
        expected = model.generate(prompt, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=1)
        assert torch.equal(written, expected[:, 8:])

    def test_median_of_turns_that_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        readings = iter([(100.0, 100.0), (5.0, 0.5), (1.0, 0.1), (3.0, 0.3)])
        monkeypatch.setattr(speed, "_once", lambda *_: next(readings))
        found = compare_speed({"it": tiny_model("llama")}, prompt_tokens=4, new_tokens=2, repeats=3)["it"]
        assert (found.prefill_seconds, found.decode_seconds_per_token) == (3.0, 0.3)

    def test_mode_is_restored(self) -> None:
        model = tiny_model("llama").train()
        compare_speed({"it": model}, prompt_tokens=4, new_tokens=1, repeats=1)
        assert model.training

    def test_refusals(self) -> None:
        model = tiny_model("llama")
        with pytest.raises(DataError, match=r"120 \+ 32 tokens exceed the context of 128 of it"):
            compare_speed({"it": model}, prompt_tokens=120)
        with pytest.raises(DataError, match="must be 1 at least"):
            compare_speed({"it": model}, repeats=0)


class TestDenseTwin:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_is_whole(self, architecture: str) -> None:
        dense = tiny_model(architecture)
        twin = dense_twin(pruned(architecture, "attention.0", "mlp.2"))
        assert type(twin) is type(dense)
        assert {name: tensor.shape for name, tensor in twin.state_dict().items()} == {
            name: tensor.shape for name, tensor in dense.state_dict().items()
        }
        assert all(bool(tensor.isfinite().all()) for tensor in twin.parameters())
        assert find_sublayers(twin).removed == ()
        assert "lit_prune" not in twin.config.to_dict()
        assert "per_layer_config" not in twin.config.to_dict()
        assert not twin.training

    def test_caches_again(self) -> None:
        model = pruned("llama", *(f"attention.{block}" for block in range(NUM_BLOCKS)))
        assert not model.config.use_cache
        twin = dense_twin(model)
        assert twin.config.use_cache
        assert cache_of(twin(input_ids=torch.ones(1, 3, dtype=torch.long))).get_seq_length() == 3

    def test_dtype_attention_and_the_model_itself(self) -> None:
        model = pruned("llama", "mlp.0").to(torch.bfloat16)
        model.set_attn_implementation("eager")
        before = torch.random.get_rng_state()
        twin = dense_twin(model)
        assert torch.equal(before, torch.random.get_rng_state())
        assert twin.dtype == torch.bfloat16
        assert twin.config._attn_implementation == "eager"
        assert model.config.lit_prune["removed"] == ["mlp.0"]
        assert model.config.to_dict()["per_layer_config"] == {"0": {"skip": ["mlp"]}}


@pytest.mark.parametrize(("number", "rank"), [(5, 1), (6, 1), (9, 2), (21, 6), (100, 40)])
def test_the_interval_of_a_median_is_that_of_order_statistics(number: int, rank: int) -> None:
    # Ranks as tables of confidence intervals for the median have them.
    found = speedup([float(each) for each in range(number, 0, -1)], [1.0] * number)
    assert (found.low, found.high) == (rank, number + 1 - rank)
    assert found.ratio == (number + 1) / 2


class TestIdeal:
    def test_ideal_is_the_dense_model_less_what_its_modules_took(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = SimpleNamespace(seconds=0.0)
        monkeypatch.setattr(speed, "now", lambda model: clock.seconds)
        monkeypatch.setattr(speed.time, "perf_counter", lambda: clock.seconds)
        prices = {"input_layernorm": 1.0, "self_attn": 10.0, "mlp": 100.0, "lm_head": 1000.0}

        def priced(model: Any) -> Any:
            for name, module in model.named_modules():
                price = prices.get(name.rpartition(".")[2])
                if price is not None and any(True for _ in module.parameters()):
                    forward = module.forward

                    def slow(*args: Any, forward: Any = forward, price: float = price, **kwargs: Any) -> Any:
                        clock.seconds += price
                        return forward(*args, **kwargs)

                    module.forward = slow
            return model

        gone = ["model.layers.1.input_layernorm", "model.layers.1.self_attn", "model.layers.2.mlp"]
        models = {"dense": priced(tiny_model("llama")), "pruned": priced(pruned("llama", "attention.1", "mlp.2"))}
        found = compare_speed(
            models, prompt_tokens=4, new_tokens=2, repeats=1, warmup=0, ideals={"ideal": Ideal("dense", gone)}
        )
        assert found["dense"].prefill_seconds == found["dense"].decode_seconds_per_token == 1444.0
        assert found["ideal"].prefill_seconds == found["ideal"].decode_seconds_per_token == 1444.0 - 111.0
        assert found["pruned"].prefill_seconds == 1444.0 - 111.0
        assert not models["dense"].model.layers[1].self_attn._forward_hooks

    def test_not_where_a_module_cannot_be_timed(self) -> None:
        models = {"a": tiny_model("llama").to("meta")}
        with pytest.raises(DataError, match="on a CPU alone"):
            compare_speed(models, ideals={"b": Ideal("a", ["lm_head"])})


class TestFootprint:
    def test_bytes_are_those_of_the_tensors(self) -> None:
        model = tiny_model("llama", tie_word_embeddings=True)
        found = compare_speed({"it": model}, prompt_tokens=10, new_tokens=2, batch=3, repeats=1, footprints=True)["it"]
        assert found.footprint is not None
        weights = sum(each.nbytes for each in model.parameters()) + sum(each.nbytes for each in model.buffers())
        # Keys and values of 2 heads of 8 numbers in float32, 4 blocks.
        assert found.footprint.cache == 2 * 3 * 12 * 2 * 8 * 4 * NUM_BLOCKS
        assert found.footprint.weights == weights
        assert found.footprint.peak >= weights + found.footprint.cache

    def test_the_peak_is_of_what_is_alive_at_a_time(self) -> None:
        def run() -> None:
            first = torch.zeros(100)
            second = first + 1
            view = second.view(10, 10)
            del first
            third = view * 2
            del second, view
            fourth = third + torch.ones(25)[0]
            del third, fourth

        counted = measure_footprint(torch.nn.Linear(2, 2, bias=False), run)  # type: ignore[arg-type]
        assert (counted.weights, counted.cache) == (16, 0)
        assert counted.peak == 16 + 100 * 4 * 2 + 100
