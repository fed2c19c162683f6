import json

import pytest

import lit_prune
from lit_prune.__main__ import main
from lit_prune.data import calibration_batches, drawn_windows
from lit_prune.evaluation import Analysis, analyse
from lit_prune.files import from_json
from lit_prune.measure import WhatIf


def test_models_are_analysed_side_by_side(model_folder, text, tmp_path, tokenizer, capsys):
    pruned = tmp_path / "pruned"
    options = ["--data", str(text), "--window", "16", "--num_windows", "4", "--device", "cpu"]
    assert main(["prune", str(model_folder), "--output", str(pruned), *options, "--search", "one_shot"]) == 0
    out = tmp_path / "out"
    assert main(["analyse", f"{model_folder},{pruned}", "--output", str(out), *options, "--batch_size", "3"]) == 0
    said = capsys.readouterr().out
    assert f"{model_folder}: loss" in said
    data = from_json(json.loads((out / "analysis.json").read_text()))
    windows = drawn_windows(str(text), tokenizer, window=16, wanted=4, seed=0)[:4]
    for name, each in zip((model_folder, pruned), data["models"], strict=True):
        expected = analyse(WhatIf(lit_prune.load(name), calibration_batches(windows, 4)), name=str(name))
        found = Analysis.from_dict(each)
        assert found.model == str(name)
        assert found.loss == pytest.approx(expected.loss, abs=1e-5)
        for one, other in zip(found.sublayers, expected.sublayers, strict=True):
            assert one.name == other.name
            assert one.output_norm == pytest.approx(other.output_norm, rel=1e-4)
            assert one.nri == pytest.approx(other.nri, rel=1e-2, abs=1e-4)
    assert len(data["models"][1]["sublayers"]) < len(data["models"][0]["sublayers"])
    pictures = {each.name for each in out.glob("*.png")}
    assert pictures == {f"{each}.png" for each in ("norms", "similarity", "impact", "logit_lens", "unraveled")}


def test_impact_can_be_left_out(model_folder, text, tmp_path, monkeypatch):
    monkeypatch.setattr(WhatIf, "losses", None)
    options = ["--data", str(text), "--window", "16", "--num_windows", "2", "--impact", "false", "--device", "cpu"]
    assert main(["analyse", str(model_folder), "--output", str(tmp_path / "out"), *options]) == 0
    assert not (tmp_path / "out/impact.png").exists()
    assert (tmp_path / "out/norms.png").exists()


def test_what_cannot_be_analysed_is_one_line(model_folder, text, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["analyse", ",", "--output", out]) == 2
    assert main(["analyse", str(model_folder), "--output", out, "--data", str(text), "--window", "2000"]) == 2
    error = capsys.readouterr().err
    assert "name at least one model" in error
    assert "2000 tokens; 8 are asked for" in error or "shorter than one window of 2000" in error
    assert not (tmp_path / "out").exists()
