"""Quantised GGUF files: by llama.cpp's own tool where there is one, and by stand-ins for it."""

import shutil

import gguf
import pytest

from lit_prune.__main__ import main
from lit_prune.errors import ModelError
from lit_prune.export import export_model, llama_cpp, quantise
from lit_prune.export.llama_cpp_process import server
from lit_prune.export.targets import GGUF_QUANTISED
from tests.export.test_gguf import TEXT, byte_tokenizer, model_of

REAL = shutil.which(quantise.TOOL)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a shell script in the place of llama.cpp's tool, which llama.cpp itself does not come to judge."""

    def put(script):
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        (folder / quantise.TOOL).write_text(f"#!/bin/sh\n{script}\n")
        (folder / quantise.TOOL).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    return put


def quantised(tmp_path, **options):
    (tmp_path / "made").mkdir(exist_ok=True)
    chosen = {"format": "gguf", "weights": "q4_k_m", "tokenizer": byte_tokenizer(), **options}
    return export_model(model_of(["mlp.1"]), tmp_path / "made/out.gguf", **chosen)


def test_the_tool_gets_the_weights_as_they_are(tool, tmp_path):
    tool(f'echo "$3 $4" > {tmp_path}/asked; cp "$1" "$2"')
    file = quantised(tmp_path)
    assert (tmp_path / "asked").read_text().startswith("Q4_K_M ")
    assert {each.tensor_type.name for each in gguf.GGUFReader(file).tensors} == {"F32"}
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["out.gguf"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('echo "no room" >&2; exit 3', "llama-quantize ended by 3: no room"),
        ("exit 0", "llama-quantize ended by 0: it said nothing"),
        ("cp {other} $2", "llama-quantize wrote other values: those of token_embd.weight moved by more than 0.15"),
    ],
)
def test_what_the_tool_gets_wrong_leaves_nothing(script, reason, tool, tmp_path):
    other = export_model(model_of(["mlp.1"], seed=3), tmp_path / "o.gguf", format="gguf", tokenizer=byte_tokenizer())
    tool(script.format(other=other))
    with pytest.raises(ModelError, match=reason):
        quantised(tmp_path)
    assert not [*(tmp_path / "made").iterdir()]


def test_without_the_tool_it_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    folder = export_model(model_of([]), tmp_path / "pruned", tokenizer=byte_tokenizer())
    monkeypatch.setattr(quantise, "TOOL", "llama-quantize-that-is-not-there")
    monkeypatch.setattr("lit_prune.loading.models.load", lambda *_, **__: pytest.fail("loaded"))
    out = tmp_path / "x.gguf"
    assert main(["export", str(folder), "--format", "gguf", "--output", str(out), "--weights", "q4_k_m"]) == 2
    assert "q4_k_m is written by llama.cpp's own" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.skipif(REAL is None or not llama_cpp.is_installed(), reason="llama-quantize or xllamacpp is absent")
@pytest.mark.parametrize("weights", GGUF_QUANTISED)
@pytest.mark.parametrize("width", [256, 64])  # rows of whole blocks, and of none
def test_llama_cpp_answers_with_what_its_tool_wrote(weights, width, tmp_path):
    model, tokenizer = model_of(["attention.0", "mlp.1"], hidden_size=width, intermediate_size=512), byte_tokenizer()
    file = export_model(model, tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer, weights=weights)
    kinds = {each.tensor_type.name for each in gguf.GGUFReader(file).tensors}
    assert kinds & {"Q3_K", "Q4_K", "Q5_K", "Q6_K"} if width == 256 else kinds - {"F32", "F16"}
    with server(file) as llama:
        answer = llama.handle_completions({"prompt": TEXT, "n_predict": 4, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 4
