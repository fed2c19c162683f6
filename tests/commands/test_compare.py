import json

import pytest

from lit_prune.__main__ import main

SIZES = ["--window=16", "--num_windows=2", "--num_unseen=2", "--speed={prompt_tokens: 8, new_tokens: 2, repeats: 1}"]
METHODS = "--methods=[shortgpt, {method: nri, label: nri attention, granularity: attention}]"


def test_one_command_leaves_tables_pictures_and_plans(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", folder, f"--output={out}", "--amounts=[0.1, 0.2]", METHODS, *SIZES]) == 0
    text = (out / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ") and "---" not in line] == [
        *["| method", "| dense", "| shortgpt", "| nri attention"] * 2
    ]
    assert (out / "comparison.csv").read_text().count("\n") == 6
    assert {path.suffix for path in out.glob("*")} >= {".md", ".csv", ".png", ".jsonl"}
    assert len(list(out.glob("*.png"))) == 3
    plans = {path.stem: json.loads(path.read_text()) for path in out.rglob("plans/*/*.json")}
    assert set(plans) == {"shortgpt-0.1", "shortgpt-0.2", "nri-attention-0.1", "nri-attention-0.2"}
    assert all(step["removed"].startswith("attention") for step in plans["nri-attention-0.2"]["steps"])
    assert plans["shortgpt-0.1"]["calibration"]["num_sequences"] == 2
    assert {name: plan["compensation"].get("name") for name, plan in plans.items() if name.endswith("0.2")} == {
        "shortgpt-0.2": None,
        "nri-attention-0.2": "refit",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods=[short]"], "unknown method 'short'"),
        (["--methods=[nri, nri]"], "two lines are called 'nri'"),
        (["--methods=[{label: x}]"], "needs a method"),
        (["--methods=[{method: nri, scorer: nothing}]"], "unknown scorer 'nothing'"),
        (["--methods=[{method: nri, score: ri}]"], "a method has no score"),
        (["--amounts=[1.5]"], "above 0 and below 1"),
        (["--methods=[{method: nri, num_windows: 1000000}]"], "1000002 are asked for"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(folder, tmp_path, capsys, arguments, message):
    assert main(["compare", folder, f"--output={tmp_path / 'out'}", *SIZES, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_comparison_in_the_same_folder_is_refused(folder, tmp_path, capsys):
    arguments = ["compare", folder, f"--output={tmp_path / 'out'}", "--amounts=[0.1]", "--methods=[random]", *SIZES]
    assert main(arguments) == 0
    assert main([*arguments, "--seed=1"]) == 2
    assert "with other seed" in capsys.readouterr().err
