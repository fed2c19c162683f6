import html
import math
import random
import re

import pytest
from markdown_it import MarkdownIt

from lit_prune import report
from lit_prune.plan import Candidate, ModelFacts, PrunePlan, PruneStep
from lit_prune.report import Answer, Row, Summary

FACTS = ModelFacts("llama", num_blocks=4, hidden_size=8, num_parameters=1_000_000, name="org/model_a|b")
STEPS = (
    PruneStep(Candidate.parse("mlp.2"), 150_000, 0.51234, math.log(20), math.log(25), cost=10.5, epoch=0),
    PruneStep(Candidate.parse("attention.12"), 50_000, -1.25, math.log(22), math.log(21.5), cost=9.25, epoch=2),
)
PLAN = PrunePlan(
    FACTS,
    STEPS,
    calibration={"source": "validation", "num_tokens": 16384, "sha256": "0123456789abcdef" * 4},
    scorer={"name": "nri", "baseline": "original"},
    search={"name": "one_shot"},
    versions={"lit-prune": "0.1.0", "torch": "2.9"},
)
ROWS = [
    Row("parameters", 1_000_000, 800_000, better="lower"),
    Row("perplexity", 20.0, 21.23456, better="lower"),
    Row("prefill", 56.0, 50.0, unit="ms", better="lower"),
    Row("decoding", 5.0, 6.0, unit="ms", better="lower"),
    Row("accuracy", 0.5, 0.55, better="higher"),
    Row("not measured", None, 3.0),
    Row("of nothing", 0, 3),
    Row("broken", 20.0, math.inf, better="lower"),
]
NASTY = "\n".join(
    [
        "# heading", "- item", "1. one", "2) two", "```python", "    indented", "~~~", "| a | b |", "|---|---|",
        "<script>alert(1)</script>", "</blockquote>", "---", "===", "***bold*** _it_ __it__ snake_case",
        "[link](http://a.b) ![i](j)", "&amp; &copy;", "$x$", "~~gone~~", "a\\", "+ plus", "> quote",
        "[red]rich[/red] [/]", "", "after a gap", "\ttab",
    ]
)  # fmt: skip


def summary_markdown(rows, **parts):
    return report.summary_markdown(Summary(rows, **parts))


def print_summary(rows, **parts):
    report.print_summary(Summary(rows, **parts))


def rendered(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def cells(page):
    rows = re.findall(r"<tr>(.*?)</tr>", rendered(page), flags=re.S)
    return [[html.unescape(each) for each in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.S)] for row in rows]


def quotes(page):
    """What a Markdown reader shows inside the quotes, and the page without them."""
    shown = rendered(page)
    parts = re.findall(r"<blockquote>\n(.*?)</blockquote>", shown, flags=re.S)
    rest = re.sub(r"<blockquote>.*?</blockquote>", "", shown, flags=re.S)
    return parts, rest


def as_text(quote):
    """Paragraphs and line breaks as text; any other element would stay and be found."""
    text = quote.replace("<br />", "").replace("</p>\n<p>", "\n\n").removeprefix("<p>").removesuffix("</p>\n")
    return html.unescape(text).replace("\xa0", " ")


def test_figures_before_and_after_are_those_computed_by_hand():
    table = cells(summary_markdown(ROWS, plan=PLAN))[:9]
    assert table == [
        ["", "before", "after", "change"],
        ["parameters", "1,000,000", "800,000", "-20.0% (better)"],
        ["perplexity", "20", "21.23", "+6.2% (worse)"],
        ["prefill", "56 ms", "50 ms", "-10.7% (1.12x faster)"],
        ["decoding", "5 ms", "6 ms", "+20.0% (1.20x slower)"],
        ["accuracy", "0.5", "0.55", "+10.0% (better)"],
        ["not measured", "n/a", "3", ""],
        ["of nothing", "0", "3", ""],
        ["broken", "20", "inf", ""],
    ]


def test_removals_have_their_share_left_and_their_perplexities():
    table = cells(summary_markdown([], plan=PLAN))
    assert table == [
        ["epoch", "removed", "score", "parameters", "left", "ppl before", "ppl after"],
        ["0", "mlp.2", "0.5123", "150,000", "85.0%", "20", "25"],
        ["2", "attention.12", "-1.25", "50,000", "80.0%", "22", "21.5"],
    ]


def test_what_was_not_measured_is_left_open_and_epochs_only_come_with_training():
    step = PruneStep(Candidate.parse("block.1"), 100_000, nll_before=1e6)
    table = cells(summary_markdown([], plan=PrunePlan(FACTS, (step,))))
    assert table[0][0] == "removed"
    assert table[1] == ["block.1", "n/a", "100,000", "90.0%", "inf", "n/a"]


def test_the_page_says_how_it_was_found_and_what_that_cost():
    text = html.unescape(rendered(summary_markdown([], plan=PLAN, notes=["one * note", "two"])))
    for fact in (
        "<h1>org/model_a|b, before and after pruning</h1>",
        "2 removals, 200,000 of 1,000,000 parameters (20.0%)",
        "Search: one_shot; scorer: nri (baseline: original)",
        "19.8 dense forward passes",
        "validation (num tokens: 16,384, sha256: 0123456789ab...)",
        "lit-prune 0.1.0, torch 2.9",
        "<li>one * note</li>\n<li>two</li>",
    ):
        assert fact in text


def test_an_empty_plan_says_so():
    page = summary_markdown([], plan=PrunePlan(FACTS))
    assert "Nothing was removed." in page
    assert not cells(page)


def test_answers_stay_in_their_quotes_and_are_shown_as_they_are():
    page = summary_markdown(ROWS, plan=PLAN, answers=[Answer("Why *so*?", NASTY, "plain\r\nlines")], notes=["the end"])
    parts, rest = quotes(page)
    assert [as_text(part) for part in parts] == [NASTY.replace("\t", "    "), "plain\nlines"]
    assert "Why *so*?" in rest
    assert "the end" in rest
    assert "script" not in rest
    # GitHub renders formulas, the parser here does not.
    assert r"\$x\$" in page


def test_no_answer_can_leave_its_quote():
    generator = random.Random(0)
    pieces = [*"\\`*_{}[]<>()#+-.!|~&$:=\"' ", "a", "B1", "12", "\n", "\n\n", "```", "&lt;", "</p>", "http://a.b", "é"]
    for _ in range(400):
        answer = "".join(generator.choices(pieces, k=generator.randrange(1, 30))).strip()
        (before, after), rest = quotes(summary_markdown([], plan=PLAN, answers=[Answer("q", answer, "fine")]))
        lines = [line.rstrip() for line in answer.split("\n")]
        expected = re.sub(r"\n{2,}", "\n\n", "\n".join(lines)) or "(nothing)"
        assert as_text(before) == expected, repr(answer)
        assert as_text(after) == "fine"
        assert "<h2>Answers</h2>" in rest


def test_control_characters_and_halves_of_characters_do_not_reach_file_or_screen(capsys):
    answers = [Answer("q", "a\x1b[2Jb\x00\ud800c", "")]
    page = summary_markdown([], plan=PLAN, answers=answers)
    print_summary([], plan=PLAN, answers=answers)
    shown = capsys.readouterr().out
    for text in (page, shown):
        text.encode()
        assert "\x1b[2J" not in text
        assert "\x00" not in text
        assert "(nothing)" in text


def test_the_screen_shows_the_same_figures_and_markup_literally(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    print_summary(
        ROWS, plan=PLAN, answers=[Answer("[bold]Why[/bold]?", "[red]so[/red] [/] :smile:", "x")], notes=["end"]
    )
    shown = capsys.readouterr().out
    for text in ("[bold]Why[/bold]?", "[red]so[/red] [/] :smile:", "end", "1.12x faster", "-20.0% (better)"):
        assert text in shown
    for row in cells(summary_markdown(ROWS, plan=PLAN)):
        line = r".*".join(re.escape(cell) for cell in row if cell)
        assert re.search(line, shown), row


def test_names_are_whole_on_a_narrow_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_summary([], plan=PLAN)
    assert "attention.12 " in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_screen_that_cannot_write_an_answer_does_not_end_the_run(encoding, monkeypatch):
    import io
    import sys

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    print_summary(ROWS, plan=PLAN, answers=[Answer("q", "snow \N{SNOWMAN} man", "x")])
    sys.stdout.flush()
    assert b"snow ? man" in raw.getvalue()
