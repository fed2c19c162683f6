import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_prune.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sped"], "bench knows speed, draft and scale; found 'sped'"),
        (["search", "model", "--amount=0.2"], "bench search is now python -m benchmarks.search, run from a checkout"),
        (["memory", "model"], "bench memory is now python -m benchmarks.memory, run from a checkout"),
    ],
)
def test_what_is_no_kind_of_measurement_is_one_clear_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_speeds_are_ratios_of_the_same_turn(folder, tmp_path, monkeypatch, capsys):
    readings = iter(
        [(9.0, 9.0), (9.0, 9.0)] + [each for turn in range(1, 8) for each in ((2.0 * turn, 6.0), (1.0 * turn, 2.0))]
    )
    output = SimpleNamespace()
    monkeypatch.setattr("lit_prune.evaluation.speed._once", lambda *_: (*next(readings, (0.0, 0.0)), output))
    options = [
        "--repeats",
        "7",
        "--warmup",
        "1",
        "--prompt_tokens",
        "8",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "speed.md"),
    ]
    assert main(["bench", "speed", f"{folder},{folder}", *options]) == 0
    page = (tmp_path / "speed.md").read_text()
    assert page in capsys.readouterr().out
    first, second = page.splitlines()[2:4]
    size = sum(each.stat().st_size for each in Path(folder).glob("*.safetensors"))
    assert first.startswith(f"| {folder} (1) | 8000.00 |  | 6000.00 |  | 0.2 | {size / 1e6:.1f} | ")
    ratios = "2.000 (2.000 to 2.000) | 2000.00 | 3.000 (3.000 to 3.000)"
    assert second.startswith(f"| {folder} (2) | 4000.00 | {ratios} | 0.5 | ")


def test_one_model_has_nothing_to_be_compared_with(folder, capsys):
    assert main(["bench", "speed", folder]) == 2
    assert "two models or more" in capsys.readouterr().err


@pytest.fixture
def pruned(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and runs away. " * 40)
    small = ["--data", str(text), "--window", "24", "--num_windows", "2", "--scorer", "acceptance"]
    assert main(["prune", folder, "--amount=0.2", "--compensate=none", *small, "--output", str(tmp_path / "out")]) == 0
    return tmp_path / "out", ["--data", str(text), "--device", "cpu"]


def test_drafts_of_a_plan_and_of_a_pruned_model(folder, pruned, tmp_path, capsys):
    out, options = pruned
    output = tmp_path / "draft.json"
    assert (
        main(["bench", "draft", folder, str(out), *options, "--window=24", "--num_windows=2", "--output", str(output)])
        == 0
    )
    said = capsys.readouterr().out
    steps = len(json.loads((out / "prune_plan.json").read_text())["steps"])
    assert len([line for line in said.splitlines() if line.startswith(("| 1", "| 2", "| 3", "| **"))]) == steps
    assert f"--draft {output} --draft_tokens" in said
    assert len(json.loads(output.read_text())["steps"]) <= steps
    drafts = f"{out / 'prune_plan.json'},{out}"
    sizes = ["--prompt_tokens=8", "--new_tokens=6", "--repeats=2", "--warmup=0", "--draft_tokens=2"]
    page = tmp_path / "page.md"
    assert main(["bench", "speed", folder, "--draft", drafts, *options, *sizes, "--output", str(page)]) == 0
    none, plan, own = page.read_text().splitlines()[2:5]
    assert none.startswith("| none |")
    cells = [[cell.strip() for cell in row.split("|")][4:6] for row in (plan, own)]
    assert cells[0] == cells[1], "the same draft, with the model's weights and with its own"
    assert "2 prompts of 8 tokens" in page.read_text()
    assert "The greedy text is the same with and without draft." in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draft=gone.json"], "gone.json"),
        (["--draft=gone.json", "--batch=2"], "one prompt at a time"),
        (["--draft=[]"], "draft names plans or pruned models"),
        (["--draft=gone.json", "--draft_tokens=-1"], "draft_tokens is 0 or more"),
    ],
)
def test_a_draft_that_cannot_be_is_told_before_anything_is_loaded(folder, options, message, capsys):
    assert main(["bench", "speed", folder, *options]) == 2
    assert message in capsys.readouterr().err
