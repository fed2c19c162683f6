"""Names that others wrote, in every table, on the screen and in pictures: shown as they are."""

import re

import pytest

from benchmarks import search
from lit_prune.commands import bench_speed
from lit_prune.evaluation import Analysis, Measured, Prompt, Result, Signs, Speed, TaskScore, TokenLoss
from lit_prune.files import markdown_table, say
from lit_prune.report import (
    analysis_markdown,
    answers_markdown,
    comparison_figure,
    comparison_markdown,
    evaluation_markdown,
    removal_figure,
    save_figure,
    score_map,
    signs_markdown,
)

HOSTILE = ["<script>alert(1)</script>", "x](javascript:alert(1))|y", "a\x1b[2J\u2028# b\n# c", "\u202emoc"]


def result(name):
    figures = {"prefill": 1.0, "decode": 1.0, "num_blocks": 2, "passes": 1.0, "removed": ("mlp.0",)}
    sizes = {"amount": 0.1, "num_parameters": 9, "share_removed": 0.1, "zeros": 0.0}
    tasks = {name: TaskScore(name, 0.5, 0.1)}
    return Result(name, name, {}, **sizes, perplexities={name: 2.0}, tasks=tasks, **figures)


def pages(name):
    """Every page of Markdown that lit-prune writes, of a model, text, task, method and question of that name."""
    measured = Measured(name, 1, {name: TokenLoss(1.0, 2, 1, 8)}, {name: TaskScore(name, 0.5, 0.1)})
    yield evaluation_markdown([measured, measured], compared=True)
    yield comparison_markdown([result(name)], [name])
    yield answers_markdown([Prompt(name, (name,), name)], {name: [[name]]})
    yield signs_markdown({name: Signs(1.0, 1.0, 0.0)})
    yield analysis_markdown([Analysis(name, 1, 1, 1, 1, 1.0, 1.0, (), (), (), (name,))])
    yield bench_speed.speed_table({name: Speed(1.0, 1.0, 1, 1, 1, "cpu", "float32", 1)})
    yield search.table([search.SearchCost(name, (), 1, 1, 1.0, 1, None, 1.0, 0.1, 2.0)])
    yield markdown_table([name], [[name]])


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_no_markup_and_move_no_cursor(name, capsys):
    say(name)
    control = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]"
    assert not re.search(control, capsys.readouterr().out)
    for page, harmless in zip(pages(name), pages("harmless"), strict=True):
        assert not re.search(control, page)
        markup = re.sub(r"\\.", "", page)  # without what is escaped
        assert not re.search(r"<|\]\(|^# [bc]", markup, re.MULTILINE)
        assert markup.count("|") == harmless.count("|")


@pytest.mark.parametrize("name", [r"m$\frac{1}$x", r"a\$b", "$$$"])
def test_pictures_draw_no_formulas(name, tmp_path):
    scores = {"attention.0": 1.0, "mlp.0": 2.0}
    figures = [
        score_map([scores], ["mlp.0"], num_blocks=1, title=name),
        comparison_figure([result(name)]),
        removal_figure([result(name)]),
    ]
    for figure in figures:
        save_figure(figure, tmp_path / "picture.png")
    drawn, is_formula = figures[0]._suptitle._preprocess_math(figures[0]._suptitle.get_text())
    assert (drawn, is_formula) == (name, False)
