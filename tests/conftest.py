"""What all tests share: no network, one thread, one seed, and a tokenizer made in code."""

from __future__ import annotations

import os
from pathlib import Path

# Read when huggingface_hub is imported, so it must be set before anything of ours is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.tiny import character_tokenizer, tiny_model

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    # In pyproject.toml it would have pytest import Lightning, and huggingface_hub with it, ahead of this file.
    config.addinivalue_line("filterwarnings", "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same draws in every run, from a process whose seed PyTorch takes from the system."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 100 tokens that fits the tiny models."""
    return character_tokenizer()


@pytest.fixture
def model_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and runs away. " * 40)
    return path


@pytest.fixture
def finds(request, record_property):
    """Write the cell of this test's architecture and capability into the table of docs/reference/architectures.md."""
    mark = request.node.get_closest_marker("capability")
    record_property("capability", mark.args[0])
    record_property("architecture", request.node.callspec.params["architecture"])
    return lambda cell: record_property("cell", cell)
