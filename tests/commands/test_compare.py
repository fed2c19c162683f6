import json
import math
from statistics import fmean

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
    assert len(list(out.glob("*.png"))) == 3
    assert {path.name for path in out.glob("comparison.*")} == {
        f"comparison.{ending}" for ending in ("md", "csv", "png", "svg", "pdf")
    }
    first = text.partition("\n")[0]
    assert all(said in first for said in ("window: 16", "dtype: float32", "seed: 0", "draws: 1")), first
    plans = {path.stem: json.loads(path.read_text()) for path in out.rglob("plans/*/*.json")}
    assert set(plans) == {"shortgpt-0.1", "shortgpt-0.2", "nri-attention-0.1", "nri-attention-0.2"}
    assert all(step["removed"].startswith("attention") for step in plans["nri-attention-0.2"]["steps"])
    assert plans["shortgpt-0.1"]["calibration"]["num_sequences"] == 2
    assert {name: plan["compensation"].get("name") for name, plan in plans.items() if name.endswith("0.2")} == {
        "shortgpt-0.2": None,
        "nri-attention-0.2": "refit",
    }


def test_several_draws_of_several_texts_are_one_line(folder, tmp_path, capsys):
    texts = []
    for kind in ("low", "high"):
        texts.append(str(tmp_path / f"{kind}.txt"))
        rows = (f"{kind} {number} of {number * number}. " for number in range(90))
        (tmp_path / f"{kind}.txt").write_text("".join(rows))
    more = [
        f"--data={','.join(texts)}",
        "--methods=[{method: nri, search: one_shot, compensate: none}]",
        "--amounts=[0.1]",
    ]
    command = ["compare", folder, f"--output={tmp_path / 'out'}", *more, *SIZES]
    assert main([*command, "--draws=2"]) == 0
    assert main([*command, "--draws=3"]) == 0, "draws can be added later"
    _, *lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["label"], row["draw"]) for row in rows] == [("dense", 0), ("nri", 0), ("nri", 1), ("nri", 2)]
    assert len({row["settings"]["calibration"]["sha256"] for row in rows[1:]}) == 3
    table = [line for line in (tmp_path / "out/comparison.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 4, "heads, a line below them, dense, and one for all draws"
    head, values = ([cell.strip(" *") for cell in line.split("|")[1:-1]] for line in (table[0], table[-1]))
    cells = dict(zip(head, values, strict=True))
    logs = [[math.log(row["perplexities"][kind]) for kind in ("low", "high")] for row in rows[1:]]
    assert float(cells["ppl low"]) == pytest.approx(math.exp(fmean(low for low, _ in logs)), abs=0.01)
    assert float(cells["ppl, all texts"]) == pytest.approx(math.exp(fmean(map(fmean, logs))), abs=0.01)
    assert float(cells["worst draw"]) == pytest.approx(math.exp(max(map(fmean, logs))), abs=0.01)


def test_amounts_of_prune_are_a_curve_of_one_search(folder, tmp_path, capsys):
    out = tmp_path / "curve"
    command = ["prune", folder, f"--output={out}", "--search=progressive", "--compensate=none", "--device=cpu"]
    command += ["--window=16", "--num_windows=2", "--batch_size=1", "--num_unseen=6"]
    assert main([*command, "--amounts=0.05,0.1,0.2,0.3"]) == 0
    _, *lines = (out / "results.jsonl").read_text().splitlines()
    dense, *rows = [json.loads(line) for line in lines]
    assert [row["amount"] for row in rows] == [0.05, 0.1, 0.2, 0.3]
    assert (
        main(["apply", str(next(out.rglob("nri-0.3.json"))), folder, "--amount=0.2", f"--output={tmp_path / 'x'}"]) == 0
    )
    plan = json.loads((tmp_path / "x/prune_plan.json").read_text())
    assert [step["removed"] for step in plan["steps"]] == rows[2]["removed"]
    table = (out / "comparison.md").read_text()
    (head, _, first, *others) = [line for line in table.splitlines() if line.startswith("|")]
    assert len(others) == 4
    assert "95 % interval" in head
    assert "KV cache left" in head
    assert "knee" in table
    assert "dense" in first
    # The interval of the largest amount by hand: a ratio estimator over windows, Student's t of 5 degrees (2.571).
    (text,) = dense["losses"]
    before, after = dense["losses"][text], rows[-1]["losses"][text]
    rise = after["nll"] - before["nll"]
    rests = [
        one - two - rise * number
        for one, two, number in zip(after["sums"], before["sums"], after["tokens"], strict=True)
    ]
    error = math.sqrt(6 / 5 * sum(rest**2 for rest in rests)) / sum(after["tokens"])
    low, high = (math.exp(after["nll"] + sign * 2.571 * error) for sign in (-1, 1))
    ends = others[-1].split("|")[head.split("|").index(" 95 % interval ")]
    assert [float(end) for end in ends.split(" to ")] == pytest.approx([low, high], rel=1e-3)
    assert main([*command, "--amounts=0.1,0.2", "--amount=0.1"]) == 2
    assert main([*command, "--amounts=0.1,0.2", "--draws=2"]) == 2
    assert "instead of amount" in (said := capsys.readouterr().err)
    assert "leave draws out" in said


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
    # A line that calibrates on more would push the windows that none sees farther back.
    more = "--methods=[random, {method: random, label: more, num_windows: 3}]"
    assert main([*arguments[:4], more, *SIZES]) == 2
    assert "with other calibration_windows" in capsys.readouterr().err
