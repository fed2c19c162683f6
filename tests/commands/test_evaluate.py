import json
import math
import statistics

import pytest
import torch

import lit_prune
from lit_prune.__main__ import main
from lit_prune.data import token_windows
from lit_prune.evaluation import Measured, Perplexity, TaskScore, perplexity
from lit_prune.report import evaluation_markdown
from tests import naive
from tests.tiny import tiny_model

TOKENS = torch.randint(3, 128, (6, 20), generator=torch.Generator().manual_seed(1))


def test_the_error_is_that_of_the_mean_over_windows():
    model = tiny_model("llama")
    losses = [naive.mean_loss(model, [{"input_ids": row[None]}]) for row in TOKENS]
    found = perplexity(model, [{"input_ids": TOKENS[:4]}, {"input_ids": TOKENS[4:]}])
    assert found.nll == pytest.approx(statistics.mean(losses), abs=1e-5)
    assert found.error == pytest.approx(statistics.stdev(losses) / math.sqrt(6), abs=1e-5)
    assert perplexity(model, [{"input_ids": TOKENS[:1]}]).error == 0


def test_models_stand_beside_their_reference(model_folder, text, tmp_path, tokenizer, capsys):
    pruned = tmp_path / "pruned"
    options = ["--data", str(text), "--window", "16", "--num_windows", "4", "--device", "cpu"]
    assert main(["prune", str(model_folder), "--output", str(pruned), "--amount", "0.3", *options]) == 0
    capsys.readouterr()
    shown = ["--texts", f"[{text}]", "--window", "16", "--num_windows", "1000", "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(pruned), "--against", str(model_folder), "--device", "cpu", *shown]) == 0
    windows = token_windows([text.read_text()], tokenizer, 16)
    data = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [each["model"] for each in data["models"]] == [str(model_folder), str(pruned)]
    assert data["settings"]["against"] == str(model_folder)
    for each in data["models"]:
        model = lit_prune.load(each["model"])
        expected = naive.mean_loss(model, [{"input_ids": windows}])
        assert each["perplexities"]["text"]["nll"] == pytest.approx(expected, abs=1e-4)
        assert each["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    page = (tmp_path / "out/evaluation.md").read_text()
    assert page in capsys.readouterr().out
    assert "%)" in page.splitlines()[3]


def test_only_differences_beyond_their_error_are_bold():
    def measured(name, nll, value):
        return Measured(name, 1, {"text": Perplexity(nll, 10, 5, 3, 0.01)}, {"piqa": TaskScore("acc", value, 0.02)})

    rows = [measured("dense", 3.0, 0.5), measured("near", 3.02, 0.46), measured("far", 3.1, 0.4)]
    near, far = evaluation_markdown(rows, compared=True).splitlines()[3:]
    assert near == "| near | 1 | 20.49 (+2.0%) | 46.0% ± 2.0% (-4.0) |"
    assert far == "| far | 1 | **22.20 (+10.5%)** | **40.0% ± 2.0% (-10.0)** |"
    assert "(" not in "".join(evaluation_markdown(rows, compared=False).splitlines()[2:])


def test_what_cannot_be_measured_is_one_line(model_folder, tmp_path, capsys):
    assert main(["evaluate", " , "]) == 2
    assert main(["evaluate", str(model_folder), "--texts", "[a/x.txt, b/x.txt]"]) == 2
    error = capsys.readouterr().err
    assert "name at least one model" in error
    assert "two texts to measure on would have one name: x, x" in error
