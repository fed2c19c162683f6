"""What the tests of several verbs start from."""

from pathlib import Path

import pytest
import yaml

from tests.tiny import character_tokenizer, tiny_model


@pytest.fixture
def folder(tmp_path):
    """A model whose tokenizer has a token a character."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def config(tmp_path, tokenizer):
    """The quickstart's YAML, brought down to a tiny model and text."""
    folder = tmp_path / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"paragraph {i}: the quick brown fox jumps over the lazy dog. " * 6 for i in range(30)))
    settings = yaml.safe_load((Path(__file__).parents[2] / "configs/quickstart.yaml").read_text())
    settings["trainer"].update(accelerator="cpu", enable_progress_bar=False)
    settings["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path / "runs")
    timing = {"prompt_tokens": 16, "new_tokens": 4, "repeats": 1, "max_new_tokens": 8, "question": "how?"}
    settings["trainer"]["callbacks"][1]["init_args"].update(timing)
    # Over several epochs, on the text itself and in one type on every machine.
    settings["trainer"]["max_epochs"] = 3
    pruning = settings["trainer"]["callbacks"][0]["init_args"]
    pruning.update(search="progressive", healing={"rank": 8}, distill=False)
    settings["model"].update(model=str(folder), dtype="float32", learning_rate=3e-4)
    settings["data"].update(source=str(text), window=32, train_windows=16, val_windows=5, test_windows=4)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
