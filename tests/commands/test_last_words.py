"""What a user reads at the end of a verb, and what of other libraries is not read."""

import io
import logging
import math
import re
import shlex
import warnings
from pathlib import Path

import pytest

from lit_prune import PrunePlan, load, load_tokenizer
from lit_prune.__main__ import VERBS, main
from lit_prune.commands.compare import best_in_words
from lit_prune.commands.export import USES
from lit_prune.commands.outcomes import removed_in_words
from lit_prune.commands.recipes import with_recipes
from lit_prune.commands.terminal import quieten
from lit_prune.data import calibration_batches, drawn_windows
from lit_prune.errors import LitPruneError
from lit_prune.evaluation.results import Result
from lit_prune.export import FORMATS
from lit_prune.plan import ModelFacts
from lit_prune.surgery import remove
from tests import naive

CONFIGS = Path(__file__).parents[2] / "configs"


def next_commands(printed):
    """The commands that are named behind `next:`, as words."""
    return [shlex.split(line, comments=True) for line in printed.partition("next:\n")[2].splitlines()]


def test_pruning_ends_with_perplexity_the_target_and_what_comes_next(folder, text, tmp_path, capsys):
    out = str(tmp_path / "a folder")
    how = ["--data", str(text), "--window", "16", "--num_windows", "4", "--num_unseen", "0", "--compensate", "none"]
    how += ["--method", "nri"]
    assert main(["prune", folder, "--output", out, "--amount", "0.2", "--device", "cpu", *how]) == 0
    printed = capsys.readouterr().out
    plan = PrunePlan.load(out)
    model = load(folder)
    total = sum(parameter.numel() for parameter in model.parameters())
    batches = calibration_batches(drawn_windows(str(text), load_tokenizer(folder), window=16, wanted=4, seed=0), 4)
    before = math.exp(naive.mean_loss(model, batches))
    remove(model, plan.removed)
    left = sum(parameter.numel() for parameter in model.parameters())
    after = math.exp(naive.mean_loss(model, batches))
    assert f"perplexity on the calibration text: {before:,.2f} -> {after:,.2f} ({after / before:.2f} times)" in printed
    assert f"parameters: {total:,} -> {left:,} ({1 - left / total:.1%} less, 20.0% asked for)" in printed
    assert ("since a whole sublayer is the smallest step" in printed) == (left < 0.799 * total)
    assert f"written: {out}" in printed
    assert all(words[0] == "lit-prune" and words[1] in VERBS and words[2] == out for words in next_commands(printed))
    assert ["lit-prune", "chat", out, "--against", folder] in next_commands(printed)


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        ({"amount": 0.2, "total": 1000, "reached": 200}, None),
        ({"amount": 0.2, "total": 1000, "reached": 260}, "more than asked for, since a whole sublayer"),
        ({"amount": 0.2, "total": 1000, "reached": 100, "stopped_by": "max_rise"}, "less than asked for: max_rise"),
        ({"amount": None, "total": 1000, "reached": 100}, None),
        ({}, None),
    ],
)
def test_another_amount_than_asked_for_has_a_reason(budget, line):
    plan = PrunePlan(ModelFacts("some", 2, 8, 1000), budget=budget)
    told = [each for each in removed_in_words(plan) if "than asked for" in each]
    assert told == [] if line is None else told[0].startswith(line)


@pytest.mark.filterwarnings("ignore::Warning")
def test_a_healing_counts_steps_and_no_epochs(folder, text, tmp_path, capsys):
    how = ["--data", str(text), "--window", "16", "--device", "cpu"]
    pruned, healed = str(tmp_path / "pruned"), str(tmp_path / "healed")
    assert main(["prune", folder, "--output", pruned, "--num_windows", "2", "--compensate", "none", *how]) == 0
    capsys.readouterr()
    small = ["--val_windows", "2", "--training.tokens", "128", "--training.validations", "1"]
    assert main(["heal", pruned, "--output", healed, *small, *how]) == 0
    shown = capsys.readouterr()
    assert "healing: " in shown.err
    assert not re.search(r"Epoch|/-2|Validation", shown.out + shown.err)
    assert ["lit-prune", "chat", healed, "--against", folder] in next_commands(shown.out)


def test_other_libraries_are_not_heard(monkeypatch, capsys):
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
    heard = io.StringIO()
    advertising = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    handler, level, filters = logging.StreamHandler(heard), advertising.level, [*advertising.filters]
    with warnings.catch_warnings():
        quieten(training=True)
        warnings.simplefilter("always")
        for module, file in (("lib", "/x/site-packages/lib.py"), ("lit_prune.plan", "/x/site-packages/p.py"),
                             ("mine", "/home/me/mine.py")):  # fmt: skip
            code = compile(f"import warnings; warnings.warn('of {module}')", file, "exec")
            exec(code, {"__name__": module, "__builtins__": __builtins__})
        advertising.addHandler(handler)
        advertising.setLevel(logging.INFO)
        try:
            advertising.info("💡 Tip: install something")
            advertising.info("GPU available: False")
        finally:
            advertising.removeHandler(handler)
            advertising.setLevel(level)
            advertising.filters[:] = filters
    assert capsys.readouterr().err.splitlines() == [
        "lit-prune: warning: of lit_prune.plan", "lit-prune: warning: of mine",
    ]  # fmt: skip
    assert heard.getvalue().splitlines() == ["GPU available: False"]


def test_a_run_is_found_by_its_name_and_a_file_of_that_name_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in CONFIGS.glob("*.yaml")]
    assert {"quickstart", "heal-at-end", "heal-between"} <= set(names)
    for name in names:
        option, path, rest = with_recipes(["--config", name, "--x=1"])
        assert (option, rest) == ("--config", "--x=1")
        assert Path(path).read_text() == (CONFIGS / f"{name}.yaml").read_text()
        assert with_recipes([f"--config={name}"]) == [f"--config={path}"]
    assert Path(with_recipes(["-c", "loggers/csv"])[1]).parts[-2:] == ("loggers", "csv.yaml")
    assert Path(with_recipes(["-c", "models/llama-3.1-8b"])[1]).parts[-2:] == ("models", "llama-3.1-8b.yaml")
    for kept in (["--config", "here.yaml"], ["-c", "some/where"], ["--config", "{trainer: 1}"], ["quickstart"]):
        assert with_recipes(kept) == kept
    with pytest.raises(LitPruneError, match=r"did you mean 'models/opt-6.7b'"):
        with_recipes(["--config", "models/opt-67b"])
    with pytest.raises(LitPruneError, match=r"quickstrat.* did you mean 'quickstart'\?: .*heal-at-end, heal-between"):
        with_recipes(["--config", "quickstrat"])
    (tmp_path / "quickstart").write_text("trainer:\n")
    assert with_recipes(["--config", "quickstart"]) == ["--config", "quickstart"]


def test_the_best_of_each_amount_and_text_is_named():
    facts = {"settings": {}, "num_parameters": 9, "share_removed": 0.1, "zeros": 0.0, "tasks": {}, "prefill": 1.0,
             "decode": 1.0, "num_blocks": 2, "passes": 1.0, "removed": []}  # fmt: skip
    figures = [("dense", 0, 1, 1), ("x", 0.1, 20, 31), ("y", 0.1, 21, 30), ("x", 0.2, 40, 50)]
    rows = [
        Result("m", label, amount=amount, perplexities={"a": first, "b": second}, **facts)
        for label, amount, first, second in figures
    ]
    assert list(best_in_words(rows)) == [
        "least perplexity of m less 10%: 20.00 on a, by x", "least perplexity of m less 10%: 30.00 on b, by y",
        "least perplexity of m less 20%: 40.00 on a, by x", "least perplexity of m less 20%: 50.00 on b, by x",
    ]  # fmt: skip


def test_every_format_says_how_it_is_used():
    assert set(USES) == set(FORMATS)
    assert all("place" in use.format("place") for use in USES.values())


def test_measurements_have_a_sentence_each(capsys):
    assert main(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    for kind in ("speed", "scale"):
        (line,) = re.findall(rf"^  {kind} +(.*)$", printed, re.MULTILINE)
        assert len(line.split()) > 4
        assert line.endswith(".")
