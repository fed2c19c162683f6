"""The page against the files that it shows: figures, order of removal, code that runs, and hostile text as text."""

import base64
import io
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lit_prune import PrunePlan
from lit_prune.__main__ import main
from lit_prune.errors import DataError, LitPruneError
from lit_prune.report.page import read_sources, report_page
from tests.report.pages import Page, make_runs, page

HOSTILE = '<script>alert(1)</script>"onload="x\' $\\frac{1}$ &amp; \x00 {{ 7 * 7 }}'


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"))


def cards(found):
    return {each.text for each in found.all("li") if "title" in each.text or each.around[-1] == "ul"}


def table_with(found, head):
    (table,) = [each for each in found.tables() if head in each[0]]
    return table


def test_the_map_and_the_table_tell_of_every_removal_in_its_order(runs):
    found, plan = page(runs / "pruned"), json.loads((runs / "pruned/prune_plan.json").read_text())
    removed = [step["removed"] for step in plan["steps"]]
    (blocks,) = found.all("ol", **{"class": "network"})
    cells = [
        each
        for each in found.all("span")
        if each.around[-2:] == ["ol", "li"] and "block" not in each.attributes["class"]
    ]
    assert len(cells) == 2 * plan["model"]["num_blocks"]
    names = [f"{kind}.{block}" for block in range(plan["model"]["num_blocks"]) for kind in ("attention", "mlp")]
    gone = {name: each.text for name, each in zip(names, cells, strict=True) if "gone" in each.attributes["class"]}
    assert gone == {name: str(index) for index, name in enumerate(removed, 1)}
    columns = [int(each) for each in re.findall(r"--columns-\d: (\d+)", blocks.attributes["style"])]
    assert columns == [4, 4, 4, 4], "as many as there are"
    heads, *rows = table_with(found, "attention")
    assert heads == ["block", "attention", "mlp"]
    said = {f"{kind}.{block}": text for block, *texts in rows for kind, text in zip(heads[1:], texts, strict=True)}
    assert said[removed[0]] == f"removed in round 1, score {plan['steps'][0]['score']:.4g}"
    assert {name for name, text in said.items() if text.startswith("stays, score")} == set(names) - set(removed)
    heads, *rows = table_with(found, "loss before")
    cells = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [each["removed"] for each in cells] == removed
    for cell, step in zip(cells, plan["steps"], strict=True):
        assert cell["loss after"] == f"{step['nll_after']:.4f}"
        assert cell["ppl after"] == f"{math.exp(step['nll_after']):.2f}"
        assert cell["measured"] == f"{len(step['measured'])} of {len(step['scores'])}"
        assert cell["passes"] == f"{step['cost']:.1f}"
        lowest = min((step["scores"][name] for name in step["margins"]), default=0)
        ties = [name for name, error in step["margins"].items() if 0 < step["scores"][name] - lowest <= error]
        assert cell.get("ties", "") == (str(len(ties)) if step["margins"] else "")
    gone = sum(step["num_parameters"] for step in plan["steps"])
    assert f"{gone / plan['model']['num_parameters']:.1%}" in " ".join(cards(found))
    assert f"{sum(step['cost'] for step in plan['steps']):,.1f}" in " ".join(cards(found))
    assert plan["calibration"]["sha256"] in [each.text for each in found.all("dd")]


def test_an_evaluation_is_put_to_its_model_and_says_what_exceeds_the_error(runs):
    found = page(runs / "pruned", runs / "evaluation")
    dense, pruned, _ = json.loads((runs / "evaluation/evaluation.json").read_text())["models"]
    before, after = (each["perplexities"]["text"] for each in (dense, pruned))
    ppl, tasks = [each for each in found.tables() if each[0][0] == "" and "more than chance" in each[0]]
    assert ppl[1][1].split(" ± ")[0] == f"{math.exp(before['nll']):.2f}"
    assert ppl[1][2].split(" ± ") == [
        f"{math.exp(each):.2f}" if each == after["nll"] else f"{math.exp(after['nll']) * each:.2f}"
        for each in (after["nll"], after["error"])
    ]
    exceeds = abs(after["nll"] - before["nll"]) > 1.96 * math.hypot(before["error"], after["error"])
    assert ppl[1][4] == ("yes" if exceeds else "no")
    assert tasks[1] == ["piqa (acc)", "50.0% ± 2.0%", "46.0% ± 2.0%", "-4.0 points", "no"]
    whole = table_with(found, "ppl text")
    assert [row[0] for row in whole[1:]] == [str(runs / name) for name in ("model", "pruned", "healed")]
    assert whole[3][-1] == "40.0% ± 2.0% (-10.0 points)"
    assert [each.text for each in found.all("blockquote")] == ["they", "them", "so", "(nothing)", "here", "there"]
    assert [each.text for each in found.all("p", **{"class": "prompt"})] == ["who?", "and why?", "where?"]


def test_signs_of_damage_stand_with_the_answers(runs):
    heads, dense, pruned = table_with(page(runs / "pruned", runs / "evaluation"), "repeated 4-grams")
    assert dense == [str(runs / "model"), "20.0", "50%", "1.0%", "", "", ""]
    assert pruned == [str(runs / "pruned"), "20.0", "50%", "30.0%", "25.0%", "75.0%", "0.300"]
    assert heads[-1] == "KL, nats"
    assert not [each for each in page(runs / "pruned").tables() if "repeated 4-grams" in each[0]]


def test_several_runs_begin_with_a_comparison_and_fold(runs):
    found = page(runs / "pruned", runs / "healed", runs / "evaluation", runs / "comparison")
    assert found.headings()[0] == "Runs side by side"
    assert [row[0] for row in found.tables()[0][1:]] == [str(runs / "pruned"), str(runs / "healed")]
    folded = [each for each in found.all("details") if each.attributes.get("class") == "run"]
    assert len(folded) == 2
    assert all("open" in each.attributes for each in folded), "what is closed is not printed everywhere"
    targets = {each.attributes.get("id") for each in found.elements} - {None}
    links = [each.attributes["href"] for each in found.all("a")]
    assert len(links) == 4
    assert {each.removeprefix("#") for each in links} <= targets
    healing = PrunePlan.load(runs / "healed").healing
    assert f"{healing['ppl_before']:.2f}" in " ".join(cards(found))


def test_a_training_shows_its_curves_and_what_it_measured(runs):
    found = page(runs / "fit")
    summary = json.loads((runs / "fit/summary.json").read_text())
    rows = table_with(found, "before")
    assert [row[0] for row in rows[1:]] == [each["name"] for each in summary["figures"]]
    assert rows[1][1:3] == [f"{summary['figures'][0][when]:,}" for when in ("before", "after")]
    (curves,) = read_sources([runs / "fit"]).models
    assert len(curves.curves["val_ppl"]) == 3
    assert curves.curves["prune/parameters_left"][-1][1] == pytest.approx(
        1 - curves.plan.num_removed_parameters / curves.plan.model.num_parameters
    )
    assert {"Training", "Before and after", "Scores", "Answers side by side"} <= set(found.headings())
    texts = [each.text for each in found.all("text")]
    assert "optimizer step" in texts
    assert "how?" in [each.text for each in found.all("p", **{"class": "prompt"})]
    assert any("prefill" in each for each in cards(found))


def test_a_comparison_has_all_rows_and_its_pictures(runs):
    found = page(runs / "comparison")
    tables = found.tables()
    assert [[row[0] for row in each[1:]] for each in tables] == [["dense", "shortgpt", "nri attention"]] * 2
    lines = (runs / "comparison/results.jsonl").read_text().splitlines()[1:]
    assert {row[1] for each in tables for row in each[1:]} == {
        f"{json.loads(line)['num_parameters']:,}" for line in lines
    }
    drawn = [each.attributes["aria-label"] for each in found.all("svg")]
    assert [each.partition(": ")[2].partition(",")[0] for each in drawn[:2]] == ["perplexity on text"] * 2
    assert [each.partition(":")[0] for each in drawn[2:]] == ["What went at 10%", "What went at 20%"]


def test_the_map_of_scores_has_a_pixel_for_every_sublayer_and_explains_what_it_shows(runs):
    html = report_page([str(runs / "pruned")])
    plan = json.loads((runs / "pruned/prune_plan.json").read_text())
    (drawing,) = re.findall(r'<figure class="map".*?</figure>', html, flags=re.DOTALL)
    data = re.findall(r'base64,(.*?)"', drawing, flags=re.DOTALL)
    with Image.open(io.BytesIO(base64.b64decode(data[0]))) as image:
        assert image.size == (plan["model"]["num_blocks"], 2)
        shown = {f"{('attention', 'mlp')[row]}.{block}" for block in range(image.width) for row in range(image.height)
                 if image.convert("RGBA").getpixel((block, row))[3]}  # fmt: skip
    removed = {step["removed"] for step in plan["steps"]}
    assert shown == plan["steps"][-1]["scores"].keys() - removed
    texts = [each.text for each in Page(drawing).all("text")]
    assert {"removed (number: in which round)", "removed after this round"} <= set(texts)
    assert "not scored" not in texts
    assert "currentColor" in drawing
    assert "var(--page)" in drawing
    assert "#000000" not in "".join(re.findall(r"<text.*?>", drawing))


def test_an_analysis_shows_all_its_pictures(runs):
    found = page(runs / "pruned", runs / "analysis")
    pictures = [each for each in found.all("svg") if "block by block" in each.attributes["aria-label"]]
    headings = found.headings()
    assert [each.attributes["aria-label"].removesuffix(", block by block") for each in pictures] == headings[-5:]
    assert [each.partition(":")[0].partition(" ")[0] for each in headings[-5:]] == [
        "Size",
        "Similarity",
        "Impact",
        "Logit",
        "Unraveled",
    ]
    assert f"{runs / 'model'}, {runs / 'pruned'}." in " ".join(each.text for each in found.all("p"))
    assert "#analysis-1" in [each.attributes["href"] for each in found.all("a")]


def test_three_models_answer_side_by_side_in_one_place(runs, tmp_path):
    names = [str(runs / name) for name in ("model", "pruned", "healed")]
    shutil.copytree(runs / "evaluation", tmp_path / "evaluation")
    data = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    data["answers"] = [{"prompt": ["who?"], "answers": {name: [f"by {Path(name).name}"] for name in names}}]
    (tmp_path / "evaluation/evaluation.json").write_text(json.dumps(data))
    found = page(runs / "pruned", runs / "healed", tmp_path / "evaluation")
    assert [each.text for each in found.all("blockquote")] == ["by model", "by pruned", "by healed"]


def test_sections_without_data_are_left_out(runs):
    headings = page(runs / "stock").headings()
    assert not {"Tasks", "Perplexity", "Answers side by side", "Training", "Before and after"} & set(headings)
    assert {"What was removed", "How to use it", "How it was made"} <= set(headings)


@pytest.mark.parametrize("name", ["pruned", "stock", "fit"])
def test_the_code_on_the_page_runs(runs, name, capsys):
    code = next(each for each in page(runs / name).all("code") if "import" in "".join(each.pieces))
    source = "".join(code.pieces)
    assert ("lit_prune" in source) == (name != "stock")
    if name == "fit":
        shutil.copytree(
            runs / "model",
            runs / "fit/pruned",
            dirs_exist_ok=True,
            ignore=lambda _, names: [each for each in names if "token" not in each],
        )
        source += "\ntokenizer"
    names = {}
    exec(compile(source, "page", "exec"), names)
    left = PrunePlan.load(runs / name / ("pruned" if name == "fit" else ""))
    assert (
        sum(each.numel() for each in names["model"].parameters())
        == left.model.num_parameters - left.num_removed_parameters
    )


def hostile_runs(runs, tmp_path):
    """Copies in which everything that others write is hostile: names, texts, tasks, answers, labels, sources, paths."""
    folder = tmp_path / HOSTILE.replace("/", "").replace("\x00", "")
    shutil.copytree(runs / "pruned", folder)
    (folder / "config.yaml").write_text(HOSTILE.replace("\x00", ""))
    plan = json.loads((folder / "prune_plan.json").read_text())
    plan["model"]["name"] = plan["calibration"]["source"] = HOSTILE
    plan["versions"][HOSTILE] = HOSTILE
    del plan["sha256"]  # changed on purpose
    (folder / "prune_plan.json").write_text(json.dumps(plan))
    evaluation = tmp_path / "evaluation"
    shutil.copytree(runs / "evaluation", evaluation)
    data = json.loads((evaluation / "evaluation.json").read_text())
    data["settings"]["against"] = data["models"][0]["model"] = HOSTILE
    data["models"][1]["model"] = str(folder)
    for each in data["models"]:
        each["perplexities"] = {HOSTILE: each["perplexities"]["text"]}
        each["tasks"] = {HOSTILE: each["tasks"]["piqa"]}
    data["signs"] = dict(zip((HOSTILE, str(folder)), data["signs"].values(), strict=True))
    data["answers"] = [{"prompt": [HOSTILE], "answers": {HOSTILE: [HOSTILE], str(folder): [HOSTILE]}}]
    (evaluation / "evaluation.json").write_text(json.dumps(data))
    comparison = tmp_path / "comparison"
    shutil.copytree(runs / "comparison", comparison)
    head, *lines = map(json.loads, (comparison / "results.jsonl").read_text().splitlines())
    for line in lines:
        line["model"], line["perplexities"] = HOSTILE, {HOSTILE: next(iter(line["perplexities"].values()))}
        line["label"] += "" if line["label"] == "dense" else HOSTILE
    (comparison / "results.jsonl").write_text("\n".join(json.dumps(each) for each in [head, *lines]))
    return folder, evaluation, comparison


def test_what_others_wrote_is_text_and_nothing_else(runs, tmp_path):
    found = page(*hostile_runs(runs, tmp_path))
    assert not found.open, "every element is closed"
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {each.tag for each in found.elements}
    for each in found.elements:
        assert not [name for name in each.attributes if name.startswith("on")]
        assert not {"action", "srcset", "data", "background"} & each.attributes.keys()
        assert "url(" not in each.attributes.get("style", "").replace("url(#", "")
        for name in {"src", "href", "xlink:href"} & each.attributes.keys():
            assert each.attributes[name].startswith(("#", "data:image/png;base64,"))
    assert "@import" not in "".join(each.text for each in found.all("style"))
    shown = " ".join(HOSTILE.replace("\x00", "\ufffd").split())
    assert [each.text for each in found.all("blockquote")] == [shown, shown]
    for tag in ("title", "h2", "td", "dd", "bdi", "p", "text", "code", "th"):
        assert any("<script>alert(1)" in each.text for each in found.all(tag)), tag
    assert not any(each.text == "49" for each in found.elements)
    policy = found.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    assert policy.startswith("default-src 'none';")
    assert "script-src" not in policy


def test_the_command_writes_one_file(runs, tmp_path, capsys):
    output = tmp_path / "out/report.html"
    assert main(["report", str(runs / "pruned"), str(runs / "evaluation"), f"--output={output}"]) == 0
    assert str(output) in capsys.readouterr().out
    assert [each.name for each in output.parent.iterdir()] == ["report.html"]
    assert output.read_text().rstrip().endswith("</html>")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: "nowhere", "there is no folder nowhere"),
        (lambda folder: str(folder), "prune_plan.json (prune, apply, heal)"),
        (lambda folder: str(folder.parent), "It holds runs: "),
    ],
)
def test_what_is_no_run_is_one_clear_line(runs, tmp_path, capsys, make, message):
    folder = runs / "nothing"
    folder.mkdir(exist_ok=True)
    output = tmp_path / "report.html"
    assert main(["report", str(runs / "pruned"), make(folder), f"--output={output}"]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
    assert main(["report", str(runs / "pruned"), f"--output={tmp_path}"]) == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"models": [], "settings": {}}', '{"models": [{"model": "x"}], "settings": {}}']
)
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(DataError, match="evaluation.json"):
        read_sources([tmp_path])
    (tmp_path / "evaluation.json").unlink()
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(LitPruneError, match="results.jsonl"):
        read_sources([tmp_path])


def test_a_row_of_two_folders_is_of_none(runs, tmp_path):
    for place in ("one", "other"):
        shutil.copytree(runs / "pruned", tmp_path / place / "pruned")
    data = json.loads((runs / "evaluation/evaluation.json").read_text())
    data["models"][1]["model"] = "pruned"
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/evaluation.json").write_text(json.dumps(data))
    both = page(tmp_path / "one/pruned", tmp_path / "other/pruned", tmp_path / "evaluation")
    assert "Perplexity" not in both.headings()
    assert "Perplexity" in page(tmp_path / "other/pruned", tmp_path / "evaluation").headings()


def test_methods_that_destroyed_a_model_do_not_press_the_others_together(runs, tmp_path):
    head, *lines = map(json.loads, (runs / "comparison/results.jsonl").read_text().splitlines())
    for line, ppl in zip(lines, (20.0, 30.0, 40.0, 1e9, "inf"), strict=True):
        line["perplexities"] = {"text": ppl}
    (tmp_path / "results.jsonl").write_text("\n".join(json.dumps(each) for each in [head, *lines]))
    found = page(tmp_path)
    ticks = [float(each.text.replace(",", "")) for each in found.all("text") if each.text.replace(",", "").isdecimal()]
    assert max(ticks) < 16 * 20
    assert "end at a perplexity of 320; the tables have all" in " ".join(each.text for each in found.all("p"))
    assert "1000000000.00" in [cell for each in found.tables() for row in each for cell in row]
