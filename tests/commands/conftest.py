"""What the tests of several verbs start from."""

import pytest

from tests.tiny import character_tokenizer, tiny_model


@pytest.fixture
def folder(tmp_path):
    """A model whose tokenizer has a token a character."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")
