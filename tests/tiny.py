"""Small random models of several architectures and a tokenizer for them, for tests on a CPU without network."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    cache_utils,
)

from tests.zoo import HIDDEN_SIZE, MAX_POSITIONS, NUM_BLOCKS, VOCAB_SIZE, ZOO

__all__ = [
    "ARCHITECTURES",
    "HIDDEN_SIZE",
    "MAX_POSITIONS",
    "NUM_BLOCKS",
    "VOCAB_SIZE",
    "character_tokenizer",
    "tiny_model",
]

ARCHITECTURES = ("llama", "mistral", "qwen2", "opt", "gpt2")
"""What tests use that are about more than architectures; tests/architectures takes all of the zoo."""


ANGLES = 0.0 if hasattr(cache_utils, "DummyLayer") else 1e-4
"""Relative FLOP by which transformers below 5.23 exceeds a count by hand: it multiplies for its angles."""


def tiny_model(architecture: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A float32 model of the zoo in eval mode: 4 blocks, hidden size 32, vocabulary 128, 128 positions.

    Weights are drawn wider than transformers does (standard deviation 0.2), norms and biases too, so that every
    sublayer changes the logits by far more than rounding does. The global random state is left as it was.
    """
    specimen = ZOO[architecture]
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": VOCAB_SIZE}
    settings = {**special, **specimen.settings, **overrides}
    if specimen.tower is not None:
        settings = {"text_config": settings, **specimen.tower}
    config = AutoConfig.for_model(specimen.model_type, **settings)
    factory = AutoModelForCausalLM if specimen.tower is None else AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
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
