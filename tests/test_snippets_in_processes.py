"""The commands of README and guides that train by a file, start processes or go to the Hub, in small form."""

import shlex
from pathlib import Path

import pytest

from lit_prune import PrunePlan
from tests.commands.test_fit import BIN, free_port, run
from tests.export.test_gguf import byte_tokenizer, model_of
from tests.export.test_hub import remote  # noqa: F401, a fixture
from tests.snippets import ROOT, blocks, commands, furnish, run_command, small_command
from tests.test_guides import GUIDES, MODEL, UNDERSTOOD
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

FIT = (
    *(f"--model.model={MODEL}", "--data.source=text.jsonl", "--data.window=32", "--data.batch_size=2"),
    *("--data.train_windows=8", "--data.val_windows=2", "--data.test_windows=2", "--trainer.accelerator=cpu"),
    *("--trainer.max_epochs=2", "--model.warmup_steps=0"),
)
"""What makes `fit --config quickstart` quick on a tiny model, whatever it says of them before."""


def understood(*pages):
    """Commands of these pages, or of all, that tests/test_guides.py and tests/test_readme.py only read."""
    paths = [path for path in [ROOT / "README.md", *GUIDES] if not pages or path.stem in pages]
    lines = [line for path in paths for _, listing in blocks(path.read_text(), "bash") for line in commands(listing)]
    return [line for line in lines if UNDERSTOOD.search(line)]


IN_PROCESSES = [line for line in understood() if " fit" in line or "--devices" in line]


@pytest.fixture
def place(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish(tokenizer, MODEL)
    tiny_model("llama", max_position_embeddings=256).save_pretrained(MODEL)  # the quickstart times 144 tokens
    return tmp_path


def test_there_is_no_other_command():
    hub = {line for line in understood() if "hf://" in line or "--push_to_hub" in line or "--format gguf" in line}
    assert {*IN_PROCESSES} | hub == {*understood()}
    assert len(hub) == 3


@pytest.mark.parametrize("line", IN_PROCESSES)
def test_a_command_runs_in_its_processes(line, place):
    words = shlex.split(line.replace("$(command -v lit-prune)", str(BIN / "lit-prune")))
    if words[:2] == ["fabric", "run"]:
        words[2:2] = [free_port()]
    more = FIT if "fit" in words else [*small_command(line)[len(words) - 1 :], "--device=cpu"]
    ended = run(BIN / words[0], *words[1:], *more)
    assert ended.returncode == 0, ended.stderr
    plans = [PrunePlan.load(plan) for plan in place.rglob("prune_plan.json")]
    assert plans
    assert all(plan.steps for plan in plans)


def test_gguf_and_the_hub(tmp_path, monkeypatch, remote):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    model_of(["attention.1", "mlp.2"]).save_pretrained("healed")
    byte_tokenizer().save_pretrained("healed")
    for line in understood("serve"):
        run_command(line)
    assert Path("healed.gguf").read_bytes()[:4] == b"GGUF"
    assert {"README.md", "modeling_lit_prune.py", "model.safetensors"} <= remote.files.keys()
    assert remote.private


def test_a_recipe_is_applied_from_the_hub(place, monkeypatch):
    class Hub:
        def open(self, address, mode):
            return Path("hub", address.removeprefix("hf://")).open(mode)

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    run_command(f"lit-prune prune {MODEL} --amount 0.2 --data text.jsonl --output pruned")
    run_command("lit-prune export pruned --format recipe --output hub/owner/recipe")
    (line,) = understood("between")
    run_command(line)
    assert Path("theirs/model.safetensors").read_bytes() == Path("pruned/model.safetensors").read_bytes()
