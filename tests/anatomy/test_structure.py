import lightning as L
import pytest
import torch
from lit_prune.callbacks.trainers import model_in
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from lit_prune import prune
from lit_prune.anatomy import context_length, find_sublayers
from lit_prune.costs import take_inventory
from lit_prune.errors import AnatomyError, DataError, PlanError
from lit_prune.measure import WhatIf
from lit_prune.measure.losses import require_context
from lit_prune.plan import SublayerId
from tests import naive
from tests.tiny import ANGLES, ARCHITECTURES, NUM_BLOCKS, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_sublayer_is_found_with_its_module_and_size(architecture):
    model = tiny_model(architecture)
    anatomy = find_sublayers(model)
    assert [str(each.id) for each in anatomy.sublayers] == [
        f"{kind}.{block}" for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")
    ]
    for each in anatomy.sublayers:
        name = (each.id.kind, each.id.block)
        assert model.get_submodule(each.path) is naive.module_of(model, architecture, name)
        assert each.num_parameters == naive.size(model, architecture, name)


def test_tied_weights_count_once():
    model = tiny_model("qwen2")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert find_sublayers(model).num_parameters == sum(each.numel() for each in model.parameters())


def test_works_on_the_meta_device():
    config = LlamaConfig(num_hidden_layers=3, hidden_size=64, intermediate_size=128, num_attention_heads=4)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert len(find_sublayers(model).sublayers) == 6


@pytest.mark.parametrize("name", ["llama", "gpt2", "codegen", "mpt", "llava (llama)"])
def test_the_context_length_by_whatever_name(name):
    model = tiny_model(name)
    assert context_length(model.config) == 128
    require_context(model, 128)
    with pytest.raises(DataError, match="129 tokens, the model's context holds 128"):
        require_context(model, 129)
    assert take_inventory(model, name, context=4096, dtype=torch.float32).max_context == 128


def test_norms_of_the_sums_stay_with_a_post_norm_model():
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "ffn_dim": 32, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=32, word_embed_proj_dim=16, do_layer_norm_before=False, **sizes)
    anatomy = find_sublayers(AutoModelForCausalLM.from_config(config))
    assert not any("norm" in part.path for each in anatomy.sublayers for part in each.parts)


def test_a_sublayer_that_is_not_there_is_refused():
    with pytest.raises(PlanError, match=r"attention\.9 .* not one of its 4 blocks"):
        find_sublayers(tiny_model("llama"))[SublayerId(9, "attention")]


def test_an_encoder_decoder_is_refused():
    model = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8))
    with pytest.raises(AnatomyError, match="encoder-decoder"):
        find_sublayers(model)


def test_a_model_without_config_or_blocks_is_refused():
    with pytest.raises(AnatomyError, match="no Hugging Face model"):
        find_sublayers(nn.Linear(2, 2))
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(AnatomyError, match="0 module lists of 4 decoder blocks"):
        find_sublayers(model)


def test_unknown_norms_are_named():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.third_norm = nn.LayerNorm(32)
    with pytest.raises(AnatomyError, match="third_norm"):
        find_sublayers(model)


def test_cross_attention_is_refused():
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 32}
    with pytest.raises(AnatomyError, match="ln_cross_attn|expected one attention"):
        find_sublayers(AutoModelForCausalLM.from_config(GPT2Config(add_cross_attention=True, **sizes)))


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "layers of the type linear_attention"),
        (
            "gemma3n_text",
            {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2},
            "has the norms" if ANGLES else "shares its attention",
        ),
        ("mamba", {}, "layers of the type " + ("mamba" if ANGLES else "linear_attention")),
    ],
)
def test_what_keeps_more_than_keys_and_values_is_refused(model_type, settings, message):
    config = AutoConfig.for_model(model_type, num_hidden_layers=2, vocab_size=64, hidden_size=64, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(AnatomyError, match=message):
        find_sublayers(model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
def test_a_trained_prompt_around_the_model_is_refused_at_every_entrance(kind):
    wrapped = get_peft_model(tiny_model("llama"), kind(task_type="CAUSAL_LM", num_virtual_tokens=2))
    module = L.LightningModule()
    module.own = wrapped
    batches = [{"input_ids": torch.arange(3, 9)[None]}]
    entrances = (
        lambda: find_sublayers(wrapped),
        lambda: prune(wrapped, batches, amount=0.2, progress=False),
        lambda: WhatIf(wrapped, batches),
        lambda: model_in(module, None),
        lambda: model_in(module, "own"),
    )
    for enter in entrances:
        with pytest.raises(AnatomyError, match=r"trained prompt before the model's input .*Prune the model, then"):
            enter()
