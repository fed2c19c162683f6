"""Results of a comparison against what is measured by hand, and a run that was stopped."""

import csv
import json
import math
from dataclasses import replace
from itertools import count
from xml.etree.ElementTree import fromstring

import pytest
import torch

from lit_prune.errors import DataError, ModelError
from lit_prune.evaluation import (
    DENSE,
    Comparison,
    Entry,
    Result,
    Results,
    Speed,
    TaskScore,
    TokenLoss,
    apart_by_perplexity,
    averaged,
    dense_twin,
    rank_correlation,
)
from lit_prune.plan import Candidate, PrunePlan, read_method
from lit_prune.pruning import apply_plan
from lit_prune.report import comparison_csv, comparison_figure, comparison_markdown, removal_figure, save_figure
from lit_prune.surgery import compact, remove
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model

TEXT = torch.randint(3, 128, (8, 16), generator=torch.Generator().manual_seed(5))
CALIBRATION = [{"input_ids": TEXT[:2]}, {"input_ids": TEXT[2:4]}]
UNSEEN = [{"input_ids": TEXT[4:]}]
SPEED = {"prompt_tokens": 8, "new_tokens": 2, "repeats": 1, "warmup": 0}


def make():
    return tiny_model("llama")


def entries(*names):
    return [Entry(DENSE, None, CALIBRATION), *(Entry(name, read_method(name), CALIBRATION) for name in names)]


def rows_of(folder, *names, amounts=(0.1, 0.2), model=make):
    clock = count().__next__  # a second from each reading to the next
    comparison = Comparison({"unseen": UNSEEN}, speed=SPEED, folder=folder, progress=False, clock=clock)
    kept = Results(folder / "results.jsonl", {"window": 16})
    return list(comparison.rows("tiny", model, entries(*names), amounts, kept))


def test_a_row_says_what_is_left_and_how_good_it_is(tmp_path):
    dense, small, large = rows_of(tmp_path, "blockpruner")
    assert (dense.label, dense.amount, dense.removed) == (DENSE, 0.0, ())
    assert dense.perplexities["unseen"] == pytest.approx(math.exp(naive.mean_loss(make(), UNSEEN)), rel=1e-5)
    assert [row.seconds for row in (dense, small, large)] == [0, 1, 1]
    assert small.share_removed < large.share_removed
    assert large.share_removed >= 0.2
    plan = PrunePlan.load(tmp_path / "plans/tiny/blockpruner-0.2.json")
    pruned = make()
    apply_plan(pruned, plan)
    assert [step.removed.name for step in plan.steps] == list(large.removed)
    assert large.num_parameters == sum(each.numel() for each in pruned.parameters())
    assert large.perplexities["unseen"] == pytest.approx(math.exp(naive.mean_loss(pruned, UNSEEN)), rel=1e-5)


def test_a_larger_amount_uses_what_the_smaller_measured_and_costs_as_much_as_alone(tmp_path):
    together = rows_of(tmp_path / "both", "blockpruner")[-1]
    (alone,) = rows_of(tmp_path / "one", "blockpruner", amounts=(0.2,))[1:]
    assert together.removed == alone.removed
    assert together.passes == pytest.approx(alone.passes, rel=0.02)
    lines = (tmp_path / "both/journals/tiny/blockpruner.jsonl").read_text().splitlines()
    measured = [(tuple(each["without"]), each["batch"]) for each in map(json.loads, lines[1:])]
    assert len(measured) == len(set(measured))


def test_a_comparison_that_was_stopped_goes_on_and_another_is_refused(tmp_path):
    first = rows_of(tmp_path, "shortgpt")

    def unwanted():
        raise AssertionError("a row that is there is not made again")

    assert rows_of(tmp_path, "shortgpt", model=unwanted) == first
    assert [each.label for each in rows_of(tmp_path, "shortgpt", "random")] == [
        DENSE,
        *["shortgpt"] * 2,
        *["random"] * 2,
    ]
    other = Entry("random", read_method("random").with_settings({"granularity": "block"}), CALIBRATION)
    with pytest.raises(DataError, match="'random' with other settings"):
        Results(tmp_path / "results.jsonl", {"window": 16}).get("tiny", other, 0.1)
    with pytest.raises(DataError, match="with other window"):
        Results(tmp_path / "results.jsonl", {"window": 32})


def test_speed_is_beside_the_dense_model_though_whole_blocks_are_gone(tmp_path, monkeypatch):
    seen = {}

    def timed(models, **_):
        seen.update({name: len(model.model.layers) for name, model in models.items()})
        return {name: Speed(1.0, 1.0, 1, 8, 2, "cpu", "float32", 1, (1.0,), (1.0,)) for name in models}

    monkeypatch.setattr("lit_prune.evaluation.comparison.compare_speed", timed)
    (_, row) = rows_of(tmp_path, "shortgpt", amounts=(0.2,))
    assert seen == {"dense": NUM_BLOCKS, "pruned": NUM_BLOCKS - len(row.removed)}
    model = make()
    remove(model, Candidate.parse("block.1").sublayers)
    compact(model)
    with pytest.raises(ModelError, match="load the dense model"):
        dense_twin(model)


def test_what_a_method_cannot_give_is_left_out_and_told(tmp_path):
    comparison = Comparison({"unseen": UNSEEN}, speed=SPEED, folder=tmp_path, progress=False)
    kept = Results(tmp_path / "results.jsonl", {})
    found = list(comparison.rows("tiny", make, entries("llm-drop", "random"), [0.1, 0.6], kept))
    assert [(each.label, each.amount) for each in found] == [
        (DENSE, 0.0),
        ("llm-drop", 0.1),
        ("random", 0.1),
        ("random", 0.6),
    ]
    (note,) = comparison.impossible
    assert note.startswith("tiny, llm-drop, 60%: attention sublayers cannot give")
    assert note in comparison_markdown(kept.found, comparison.impossible)


def row(label, amount, ppl, accuracy, *, removed=(), model="tiny"):
    return Result(
        model=model,
        label=label,
        settings={},
        amount=amount,
        num_parameters=100 - int(100 * amount),
        share_removed=amount,
        zeros=0.0,
        perplexities={"text": ppl},
        tasks={"quiz": TaskScore("acc", accuracy, 0.1)},
        prefill=1 + amount,
        decode=1 + amount,
        num_blocks=4,
        passes=10 * ppl,
        removed=removed,
    )


ROWS = [
    row(DENSE, 0.0, 10.0, 0.9),
    row("one", 0.1, 12.0, 0.8),
    row("other", 0.1, 11.0, 0.7),
    row("one", 0.2, 20.0, 0.4, removed=("attention.1", "block.3")),
    row("other", 0.2, 30.0, 0.5),
]


def test_the_best_of_each_column_is_bold_and_the_dense_model_does_not_compete():
    lines = [line[2:-2].split(" | ") for line in comparison_markdown(ROWS).splitlines() if line.startswith("|")]
    table = {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:5]}
    assert table["dense"]["ppl text"] == "10.00"
    assert (table["one"]["ppl text"], table["other"]["ppl text"]) == ("12.00", "**11.00**")
    assert (table["one"]["quiz acc"], table["other"]["quiz acc"]) == ("**0.800**", "0.700")
    assert (table["one"]["search, passes"], table["other"]["search, passes"]) == ("120.0", "**110.0**")


def test_what_chance_may_have_ordered_is_bold_as_well():
    def measured(label, sums, seconds, **options):
        loss = TokenLoss(sum(sums) / 40, 40, 4, 11, 0.2, sums, (10, 10, 10, 10), "b1")
        speeds = {"prefill": (seconds - 0.1, seconds + 0.1)}
        found = row(label, 0.1, loss.ppl, 0.5, **options)
        return replace(found, losses={"text": loss}, prefill=seconds, speed_intervals=speeds)

    # The last is worse by as much as the second, and so in every window.
    sums, noisy, worse = (20.0, 40.0, 15.0, 35.0), (24.0, 37.0, 19.0, 33.0), (20.8, 40.7, 15.7, 35.8)
    found = [measured("best", sums, 1.3), measured("tied", noisy, 1.15), measured("worse", worse, 1.0)]
    lines = [line[2:-2].split(" | ") for line in comparison_markdown(found).splitlines() if line.startswith("|")]
    table = {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}
    assert table["best"]["prefill"] == "**1.30 (1.20 to 1.40)**"
    for column in ("ppl text", "prefill"):
        assert [table[name][column].startswith("**") for name in ("best", "tied", "worse")] == [True, True, False]


def test_over_draws_differences_are_those_of_the_same_draws():
    logs = [3.0, 3.4, 2.8, 3.2, 3.1]
    near = [each + shift for each, shift in zip(logs, (0.3, -0.2, 0.2, -0.3, 0.1), strict=True)]
    far = [each + 0.1 + shift for each, shift in zip(logs, (0.01, -0.01, 0.02, 0.0, -0.02), strict=True)]
    rows = [
        replace(row(label, 0.1, math.exp(log), 0.5), draw=draw)
        for label, own in (("best", logs), ("near", near), ("far", far))
        for draw, log in enumerate(own)
    ]
    best, near, far = averaged(rows)
    assert not apart_by_perplexity(rows, "text", near, best)
    assert apart_by_perplexity(rows, "text", far, best)


def test_what_methods_agree_on_is_counted():
    gone = [["attention.1", "block.2"], ["mlp.2"], ["block.2+attention.1"]]
    page = comparison_markdown([row(str(each), 0.2, 11.0, 0.7, removed=each) for each in gone])
    assert "of these 3 lines: mlp.2 (3), attention.1 (2), attention.2 (2). Blocks" in page
    assert "none of them touches: 0, 3." in page
    alone = [row("one", 0.2, 11.0, 0.7, removed=["mlp.2"])]
    assert "most often" not in comparison_markdown(alone)


def test_csv_holds_every_row_unrounded():
    lines = list(csv.DictReader(comparison_csv(ROWS).splitlines()))
    assert [(each["method"], float(each["amount"]), float(each["ppl text"])) for each in lines] == [
        (each.label, each.amount, each.perplexities["text"]) for each in ROWS
    ]
    assert lines[3]["removed sublayers"] == "attention.1 block.3"
    heads = next(csv.reader(comparison_csv(ROWS).splitlines()))
    assert len(set(heads)) == len(heads)


def test_rank_correlation_is_that_of_the_ranks():
    # Ranks of perplexity 1 2 3 4 5 for dense, other, one, one, other; of accuracy 5 3 4 1 2.
    differences = [1 - 5, 2 - 3, 3 - 4, 4 - 1, 5 - 2]
    expected = 1 - 6 * sum(each**2 for each in differences) / (5 * 24)
    assert rank_correlation(ROWS, "text") == (pytest.approx(expected), 5)
    assert "(Spearman)" in comparison_markdown(ROWS)


def test_figures_show_every_method_and_what_it_removed():
    figure = comparison_figure(ROWS)
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["one", "other"]
    assert list(left.lines[0].get_ydata()) == [10.0, 12.0, 20.0]
    assert list(left.lines[0].get_xdata()) == [100.0, 90.0, 80.0]
    assert list(right.lines[1].get_xdata()) == [1.0, 1.1, 1.2]
    (image,) = removal_figure(ROWS[3:4]).axes[0].images
    assert image.get_array().tolist() == [[0, 1, 0, 1], [0, 0, 0, 2]]


def test_pictures_for_papers_are_vectors_whose_text_is_text(tmp_path):
    figure = comparison_figure(ROWS)
    drawing = save_figure(figure, tmp_path / "comparison.svg").read_text(encoding="utf-8")
    texts = ["".join(each.itertext()) for each in fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert {"one", "other", "perplexity on text", "parameters left (%)"} <= set(texts)
    ticks = [text for text in texts if text[0].isdigit()]
    assert len(ticks) > 4
    assert all(float(text) for text in ticks), "plain numbers"
    assert "<image" not in drawing
    paper = save_figure(figure, tmp_path / "comparison.pdf").read_bytes()
    assert paper.startswith(b"%PDF")
    assert b"/Subtype /Type0" in paper, "fonts, not outlines"
    assert b"/Subtype /Image" not in paper
