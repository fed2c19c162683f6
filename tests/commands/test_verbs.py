"""The command line as its user types it, in this process: verbs, files, one-line errors."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from lit_prune import PrunePlan, load
from lit_prune.__main__ import VERBS, main
from lit_prune.anatomy import find_sublayers
from lit_prune.commands.prune import Choice
from lit_prune.costs import Latency, prices
from lit_prune.surgery import removed_sublayers
from tests.tiny import tiny_model


def options(text):
    return ["--data", str(text), "--window", "32", "--num_windows", "4"]


def test_the_version_is_that_of_the_package(capsys):
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-prune {declared}\n"


def test_help_lists_every_verb_and_each_verb_has_help(capsys, monkeypatch):
    # LightningCLI warns where arguments are given and the process has some too.
    monkeypatch.setattr("sys.argv", ["lit-prune"])
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    for verb in VERBS:
        if verb == "bench":  # lists others, which have their own
            assert main([verb, "--help"]) == 0
            continue
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "whole", "name"),
    [
        ({}, True, "nri-portfolio"),
        ({}, False, "nri-lazy"),
        ({"draws": 3}, True, "nri-lazy"),
        ({"scorer": "cosine"}, True, "nri"),
        ({"search": "progressive"}, True, "nri"),
        ({"granularity": "block"}, True, "nri-portfolio"),
        ({"method": "sleb"}, False, "sleb"),
    ],
)
def test_a_method_is_taken_where_none_is_named(given, whole, name):
    assert Choice(**given).settled(whole=whole).method == name


def test_prune_writes_a_model_that_apply_can_repeat(tmp_path, model_folder, text, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["prune", str(model_folder), "--amount", "0.2", "--output", str(out), *options(text)]) == 0
    assert f"written: {out}" in capsys.readouterr().out
    plan = PrunePlan.load(out)
    assert plan.num_removed_parameters >= 0.2 * plan.model.num_parameters
    assert plan.calibration["source"] == str(text)
    assert plan.calibration["num_sequences"] == 4
    assert plan.search["name"] == "portfolio"
    lines = [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()[1:]]
    assert {str(line["batch"]).rpartition("/")[2] for line in lines} == {"0", "1", "2", "3"}, "four batches, one judges"
    assert plan.compensation["name"] == "refit"
    assert any(found["ridge"] for found in plan.compensation["refitted"].values())
    assert (
        main(
            [
                "apply",
                str(out / "prune_plan.json"),
                str(model_folder),
                "--output",
                str(again),
                "--data",
                f"{text},mixed",
            ]
        )
        == 0
    )
    first, second = load(out), load(again)
    assert removed_sublayers(first) == removed_sublayers(second)
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(first(tokens).logits, second(tokens).logits)
    alone = ["apply", str(out), str(model_folder), "--output", str(tmp_path / "alone"), "--compensate", "none"]
    assert main(alone) == 0
    assert PrunePlan.load(tmp_path / "alone").compensation == {}
    kept, dense = load(tmp_path / "alone").state_dict(), load(model_folder).state_dict()
    assert all(torch.equal(each, dense[name]) for name, each in kept.items() if each.numel())


@pytest.mark.parametrize(
    ("arguments", "of", "lines"),
    [
        (["--amount", "0.25", "--of", "kv_cache"], "kv_cache",
         ["numbers that a token adds to the KV cache: 128 -> 96 (25.0% less, 25.0% asked for)"]),
        (["--amount", "0.1", "--of", "{name: latency, phase: prefill, batch: 2, length: 16, repeats: 1}"], "latency",
         ["seconds to read 2 x 16 tokens (cpu, float32): 8 -> 7 (12.5% less, 10.0% asked for)"]),
        (["--max_rise", "1000"], "params",
         ["perplexity on the calibration tokens: ", " (at most +100000.0%)"]),
        ([], "params", []),
    ],
)  # fmt: skip
def test_budgets_are_reported_in_their_unit(tmp_path, model_folder, text, capsys, monkeypatch, arguments, of, lines):
    def stub(model, **options):
        return Latency(8.0, {each.id: 1.0 for each in find_sublayers(model).sublayers})

    monkeypatch.setattr(prices, "measure_latency", stub)
    out = tmp_path / "out"
    command = ["prune", str(model_folder), "--output", str(out), "--device", "cpu", *arguments]
    assert main([*command, *options(text)]) == 0
    printed = capsys.readouterr().out
    assert "parameters: 45,344 -> " in printed
    assert all(line in printed for line in lines)
    # The card escapes what Markdown would read as markup.
    card = re.sub(r"\\(.)", r"\1", (out / "README.md").read_text())
    assert all(line in card for line in lines)
    budget = PrunePlan.load(out).budget
    assert budget["of"] == of
    assert budget["amount"] == (None if "--max_rise" in arguments else float((arguments or ["", "0.2"])[1]))


def test_settings_come_from_a_file(tmp_path, model_folder, text):
    config = tmp_path / "prune.yaml"
    settings = {"amount": 0.1, "granularity": "mlp", "scorer": {"name": "nri", "impact": "log"}, "protect": ["mlp.0"]}
    config.write_text(json.dumps(settings))
    out = tmp_path / "out"
    assert main(["prune", "--config", str(config), str(model_folder), "--output", str(out), *options(text)]) == 0
    plan = PrunePlan.load(out)
    assert plan.scorer["impact"] == "log"
    assert set(plan.steps[0].scores) == {"mlp.1", "mlp.2", "mlp.3"}


def failing(capsys, *arguments):
    """The one line that a failing command prints."""
    assert main([str(each) for each in arguments]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("lit-prune: error:")]
    assert len(lines) == 1
    assert "Traceback" not in printed.err + printed.out
    return lines[0]


def test_what_is_wrong_is_one_line_and_nothing_is_written(tmp_path, model_folder, text, capsys):
    out, full = tmp_path / "out", tmp_path / "full"
    full.mkdir()
    (full / "keep.txt").write_text("keep")
    prune = ["prune", model_folder, "--output", out]
    assert "above 0 and below 1; found 1.5" in failing(capsys, *prune, "--amount", 1.5, *options(text))
    assert "cannot give" in failing(capsys, *prune, "--amount", 0.5, "--granularity", "attention", *options(text))
    assert "no attention.44" in failing(capsys, *prune, "--protect", "[attention.44]", *options(text))
    assert "did you mean 'nri'" in failing(capsys, *prune, "--scorer", "nrl", *options(text))
    assert "context holds 128" in failing(capsys, *prune, "--data", text, "--window", 200)
    assert "shorter than one window" in failing(capsys, *prune, "--data", text, "--window", 100000)
    assert str(full) in failing(capsys, "prune", model_folder, "--output", full, *options(text))
    assert "pip install" in failing(capsys, "prune", "package:no_such_package", "--output", out)
    failing(capsys, "prune", tmp_path / "nowhere", "--output", out)
    assert "mlp sublayers cannot give 20.0% of the KV cache" in failing(
        capsys, *prune, "--of", "kv_cache", "--granularity", "mlp", *options(text)
    )
    assert "must be one of params, flops" in failing(capsys, *prune, "--of", "watts", *options(text))
    assert "context holds 128" in failing(capsys, *prune, "--of", "{name: latency, length: 500}", *options(text))
    assert "found -1.0" in failing(capsys, *prune, "--max_rise", -1, *options(text))
    assert "did you mean 'apply'" in failing(capsys, "aply")
    assert not out.exists()
    assert [each.name for each in full.iterdir()] == ["keep.txt"]


def test_a_device_that_is_not_there_is_one_line(tmp_path, model_folder, text, capsys):
    out = tmp_path / "out"
    main(["prune", str(model_folder), "--amount", "0.1", "--output", str(tmp_path / "pruned"), *options(text)])
    for line in (
        ["prune", model_folder, "--output", out],
        ["heal", tmp_path / "pruned", "--output", out],
        ["apply", tmp_path / "pruned", model_folder, "--output", out],
        ["compare", model_folder, "--output", out],
        ["analyse", model_folder, "--output", out],
        ["evaluate", model_folder],
        ["bench", "speed", f"{model_folder},{model_folder}"],
    ):
        assert "finds no device cuda:99 here, only cpu" in failing(capsys, *line, "--device", "cuda:99"), line
    assert not out.exists()


def test_plans_that_do_not_fit_are_refused(tmp_path, model_folder, text, tokenizer, capsys):
    out = tmp_path / "out"
    main(["prune", str(model_folder), "--amount", "0.1", "--output", str(out), *options(text)])
    other = tmp_path / "other"
    tiny_model("llama", num_hidden_layers=6).save_pretrained(other)
    tokenizer.save_pretrained(other)
    assert "num_blocks 4 in the plan, 6 in the model" in failing(
        capsys, "apply", out, other, "--output", tmp_path / "x"
    )
    broken = shutil.copy(out / "prune_plan.json", tmp_path / "broken.json")
    (tmp_path / "broken.json").write_text("{")
    assert "has not written this folder" in failing(capsys, "heal", other, "--output", tmp_path / "x")
    assert "damaged" in failing(capsys, "apply", broken, model_folder, "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_unknown_option_is_one_line(model_folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prune", str(model_folder), "--output", "x", "--amout", "0.1"])
    assert stop.value.code == 2
    assert "amout" in capsys.readouterr().err.splitlines()[-1]


def test_a_text_with_too_few_windows_is_told(tmp_path, model_folder, text, capsys):
    options = ["--data", str(text), "--window", "64", "--num_windows", "1000", "--search", "one_shot"]
    assert main(["prune", str(model_folder), "--output", str(tmp_path / "pruned"), "--amount", "0.1", *options]) == 0
    number = len(text.read_text()) // 64
    assert f"{text} has {number} windows of 64 tokens, fewer than 1000" in capsys.readouterr().out
