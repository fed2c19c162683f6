"""Models that compute as a Llama does under other names, multipliers and rotations."""

import pytest
import torch
from transformers import LlamaForCausalLM

from lit_prune.errors import ModelError
from lit_prune.export import export_model, llama_cpp
from lit_prune.export.kin import as_llama, in_halves, interleaved
from lit_prune.export.llama_cpp_process import server
from lit_prune.export.targets import KIN
from lit_prune.plan import SublayerId
from lit_prune.surgery import remove
from tests.export.by_hand import decilm_logits
from tests.export.test_gguf import SETS, TEXT, byte_tokenizer
from tests.tiny import tiny_model

TOKENS = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(1))
GRANITE = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
    "tie_word_embeddings": True,
}
OVERRIDES = {
    "granite": GRANITE,
    "mistral": {"sliding_window": None},
    "helium": {"hidden_size": 64, "head_dim": 16, "attention_bias": True},  # its output projection is as wide as it
    "llama": {"attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("architecture", KIN)
def test_a_llama_computes_the_same(architecture):
    model = tiny_model(architecture, **OVERRIDES.get(architecture, {}))
    config, tensors = as_llama(model)
    llama = LlamaForCausalLM(config)
    lacking, left = llama.load_state_dict(tensors, strict=False)
    assert not left
    assert lacking == (["lm_head.weight"] if config.tie_word_embeddings else [])
    llama.tie_weights()
    with torch.no_grad():
        expected = model(TOKENS, use_cache=False).logits
        assert torch.allclose(llama.eval()(TOKENS, use_cache=False).logits, expected, atol=1e-5 * expected.abs().max())


def test_halves_and_neighbours():
    weight = torch.arange(12)[:, None]  # two heads of six
    assert interleaved(weight, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(in_halves(interleaved(weight, 2), 2), weight)


@pytest.mark.parametrize("format", ["vllm", "mlx"])
def test_folders_hold_what_was_folded(format, tmp_path):
    model = tiny_model("granite", **GRANITE)
    remove(model, [SublayerId.parse(each) for each in ("attention.0", "mlp.2")])
    with torch.no_grad():
        expected = model(TOKENS, use_cache=False).logits
    folder = export_model(model, tmp_path / "out", format=format)
    assert torch.allclose(decilm_logits(folder, TOKENS), expected, atol=1e-4)


def test_settings_that_nobody_reads_are_refused_still(tmp_path):
    model = tiny_model(
        "phi3", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    )
    with pytest.raises(ModelError, match=r"does not read partial_rotary_factor = 0.5"):
        export_model(model, tmp_path / "out", format="vllm")


@pytest.mark.slow
@pytest.mark.skipif(not llama_cpp.is_installed(), reason="xllamacpp is not installed")
@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("architecture", KIN)
def test_llama_cpp_writes_the_same_tokens(architecture, names, tmp_path):
    # Of this seed, no two tokens are likeliest by less than what rounding moves.
    sizes = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 96}
    model, tokenizer = tiny_model(architecture, seed=11, **OVERRIDES.get(architecture, {}) | sizes), byte_tokenizer()
    model.config.name_or_path = "tiny"  # llama.cpp looks for tokens of Phi-3 where a name has that in it
    remove(model, [SublayerId.parse(each) for each in names])
    file = export_model(model, tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer, weights="f32")
    tokens = tokenizer(TEXT)["input_ids"]
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    expected = model.generate(torch.tensor([tokens]), **options)[0, len(tokens) :].tolist()
    request = {"prompt": TEXT, "n_predict": 12, "temperature": 0.0, "ignore_eos": True}
    request |= {"verbose": True, "return_tokens": True}
    with server(file) as llama:
        assert llama.handle_completions(request)["__verbose"]["tokens"] == expected
