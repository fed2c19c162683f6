"""What a command line names is looked for before any model is loaded."""

import json
from pathlib import Path

import pytest

from lit_prune.__main__ import main
from tests.tiny import character_tokenizer, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a pruned one, one whose plan names a model that is gone, and a config without weights."""
    place = tmp_path_factory.mktemp("checks")
    tiny_model("llama").save_pretrained(place / "model")
    character_tokenizer().save_pretrained(place / "model")
    (place / "bare").mkdir()
    (place / "bare/config.json").write_text((place / "model/config.json").read_text())
    (place / "full").mkdir()
    (place / "full/keep.txt").write_text("how?\n")
    how = ["--window", "16", "--num_windows", "2", "--num_unseen", "0", "--search", "one_shot", "--compensate", "none"]
    assert main(["prune", str(place / "model"), "--output", str(place / "pruned"), *how]) == 0
    (place / "orphan").mkdir()
    for file in (place / "pruned").iterdir():
        (place / "orphan" / file.name).write_bytes(file.read_bytes())
    plan = json.loads((place / "orphan/prune_plan.json").read_text())
    plan["model"]["name"] = str(place / "gone")
    del plan["sha256"]
    (place / "orphan/prune_plan.json").write_text(json.dumps(plan))
    return place


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate model,pruned,gone", "there is no model folder"),
        ("evaluate model,bare", "holds no weights"),
        ("evaluate model,full", "cannot load the config"),
        ("evaluate model --against gone", "there is no model folder"),
        ("evaluate model --texts [builtin,gone.txt]", "there is no file"),
        ("evaluate model --prompts gone.txt --output out", "there is no "),
        ("evaluate model --include_path gone", "there is no "),
        ("evaluate model --dtype float3", "no dtype of weights|not a dtype"),
        ("evaluate model --output full/keep.txt", "it is no folder"),
        ("compare model,gone --output out", "there is no model folder"),
        ("compare model --output out --unseen [gone.txt]", "there is no file"),
        ("compare model --output out --methods [nir]", "did you mean"),
        ("compare model --output out --methods [{method:_nri,_data:_gone.txt}]", "there is no file"),
        ("analyse model,gone --output out", "there is no model folder"),
        ("analyse model --output out --data gone.txt", "there is no file"),
        ("analyse model --output out --layout gone.yaml", "cannot read the layout"),
        ("heal pruned --output out --teacher gone", "there is no model folder"),
        ("heal pruned --output out --data [self,gone.txt]", "there is no file"),
        ("heal orphan --output out", "the dense model that teaches: there is no model folder"),
        ("heal pruned,model --output out", "has not written this folder|prune_plan.json"),
        ("export model --format vllm --output full", "exists already"),
        ("export model --format gguf --output full/keep.txt", "exists already"),
        ("export model --format gguf --output out --tokenizer_from gone.gguf", "there is no GGUF file"),
        ("export model --format vlm --output out", "no export format"),
        ("bench speed model,gone", "there is no model folder"),
        ("chat model --against gone", "there is no model folder"),
        ("prune model --output out --data gone.txt", "there is no file"),
        ("prune model --output out --refit.data [gone.txt]", "there is no file"),
        ("prune model --output out --method nir", "did you mean"),
        ("prune model --output full", "exists already"),
        ("apply gone model --output out", "gone"),
        ("apply pruned model --output full", "exists already"),
        ("report pruned gone", "gone"),
    ],
)
def test_what_is_missing_is_told_before_a_model_is_loaded(place, monkeypatch, tmp_path, capsys, line, message):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lit_prune.loading.models.load", load)
    monkeypatch.chdir(place)
    there = ("model", "pruned", "orphan", "bare", "full", "gone")
    # Relative names that are nowhere may be on the hub.
    words = [",".join(f"./{part}" if part in there else part for part in word.split(",")) for word in line.split()]
    assert main([word.replace("_nri", " nri").replace("_data:_", " data: ") for word in words]) == 2
    error = capsys.readouterr().err
    assert any(each in error for each in message.split("|")), error
    assert error.count("lit-prune: error:") == 1
    assert not Path("out").exists()
