"""What all tests share: no network, one thread, and a tokenizer made in code."""

from __future__ import annotations

import os

# Read when huggingface_hub is imported, so it must be set before anything of ours is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.tiny import character_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 100 tokens that fits the tiny models."""
    return character_tokenizer()
