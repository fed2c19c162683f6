"""Small random models of several architectures and a tokenizer for them, for tests on a CPU without network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

ARCHITECTURES = ("llama", "mistral", "qwen2", "opt", "gpt2")
NUM_BLOCKS = 4
HIDDEN_SIZE = 32
VOCAB_SIZE = 128
MAX_POSITIONS = 128

_LLAMA_LIKE = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
}
_TABLE: dict[str, tuple[Callable[..., PreTrainedConfig], Callable[..., PreTrainedModel], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, _LLAMA_LIKE),
    "mistral": (MistralConfig, MistralForCausalLM, {**_LLAMA_LIKE, "sliding_window": 16}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "opt": (
        OPTConfig,
        OPTForCausalLM,
        {
            "hidden_size": HIDDEN_SIZE,
            "word_embed_proj_dim": HIDDEN_SIZE,
            "ffn_dim": 64,
            "num_hidden_layers": NUM_BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_POSITIONS,
            "dropout": 0.0,
        },
    ),
    "gpt2": (
        GPT2Config,
        GPT2LMHeadModel,
        {
            "n_embd": HIDDEN_SIZE,
            "n_layer": NUM_BLOCKS,
            "n_head": 4,
            "n_positions": MAX_POSITIONS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
}


def tiny_model(architecture: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A float32 model in eval mode: 4 blocks, hidden size 32, vocabulary 128, 128 positions.

    Weights are drawn wider than transformers does (standard deviation 0.2), so that every sublayer changes the logits
    by far more than rounding does. The global random state is left as it was.
    """
    config_class, model_class, settings = _TABLE[architecture]
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = config_class(**{**settings, **special, "vocab_size": VOCAB_SIZE, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
    return model.eval()


def character_tokenizer(**options: object) -> PreTrainedTokenizerFast:
    """One token a character of ASCII, 100 tokens in all; `<s>` is 0, `</s>` 1 and padding, `<unk>` 2."""
    characters = ["\n", "\t", *map(chr, range(32, 127))]
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<unk>", *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special, **options)
