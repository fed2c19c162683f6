"""A tiny model and a text on disk."""

import pytest

from tests.tiny import character_tokenizer, tiny_model


@pytest.fixture
def model_folder(tmp_path, tokenizer):
    folder = tmp_path / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and runs away. " * 40)
    return path


@pytest.fixture
def folder(tmp_path):
    """A model whose tokenizer has a token a character."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")
