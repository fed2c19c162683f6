"""The guides: what they tell a user to run runs, they stay short, and they say nothing that a reader cannot have."""

import io
import pkgutil
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from lit_prune import PrunePlan
from lit_prune.__main__ import VERBS, main
from lit_prune.commands.arguments import option_types
from tests.snippets import ROOT, blocks, commands, furnish, names_of_a_script, run_command, small_code, small_command

DOCS = ROOT / "docs"
GUIDES = [DOCS / "index.md", *sorted((DOCS / "guides").glob("*.md"))]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MADE_BEFORE = {
    "pruned": f"lit-prune prune {MODEL} --amount 0.2 --data text.jsonl --compensate none --output pruned",
    "healed": "lit-prune heal pruned --data text.jsonl --output healed",
    "evaluation": f"lit-prune evaluate pruned --against {MODEL} --texts text.jsonl --output evaluation",
}
"""What pages take from each other, in the order in which it is made."""
LEFT = {
    "index": ["run/lightning_logs/version_0/pruned", "smaller/config.json", "healed/prune_plan.json", "report.html"],
    "trainer": ["run/lightning_logs/version_0/pruned/prune_plan.json", "run/lightning_logs/version_0/summary.md"],
    "own-module": ["run/lightning_logs/version_0/pruned", "out/prune_plan.json"],
    "checkpoints": [*(f"checkpoints/epoch={epoch}.ckpt" for epoch in range(3)), "from-checkpoint/config.json"],
    "methods": ["comparison/comparison.md", "comparison/comparison.csv", "comparison/comparison.pdf"],
    "evaluate": ["evaluation/evaluation.md", "answers/answers.md", "answers/model_answer", "answers/alpaca_eval"],
    "between": ["rebuilt/config.json", "seven/config.json", "merge.yaml", "blocks.json", "as-there/config.json"],
    "see": ["report.html", "analysis/analysis.md"],
    "serve": ["anywhere/modeling_lit_prune.py", "served/config.json", "for-mlx/config.json"],
}
"""What a page says that one finds at its end, if it is followed."""
OTHER_PROGRAMS = ("pip", "git", "vllm", "llama-server", "mlx_lm.generate", "tensorboard", "LIT_PRUNE=")
UNDERSTOOD = re.compile(r"hf://|--devices|--push_to_hub|--format gguf|lit-prune\"?\)?\"? fit")
"""Commands that start processes, go to the hub, want a tokenizer with merges or train the model of a file that
tests/commands/test_fit.py trains: their options are only read here; tests/test_snippets_in_processes.py runs them."""
SLOW = ("heal", "methods", "see")
FORBIDDEN = re.compile(r"\.\./shared|(?<!\w)/(work|tmp|home|root)/|\bat hand\b|\blent\b|\black of time\b|\bsessions?\b")
PAGES = runpy.run_path(str(DOCS / "reference_pages.py"))["PAGES"]
FINISH = runpy.run_path(str(DOCS / "page_content.py"))["on_page_content"]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory, tokenizer):
    """A folder with a tiny model under the name of the guides', and what pages take from each other."""
    folder = tmp_path_factory.mktemp("guides")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(tokenizer, MODEL)
        for command in MADE_BEFORE.values():
            run_command(command)
    return folder


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # a run that is resumed
@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in GUIDES]
)
def test_a_guide_runs_from_its_first_line_to_its_last(path, furnished, tmp_path, monkeypatch):
    page = path.read_text()
    lines = [line for _, listing in blocks(page, "bash") for line in commands(listing)]
    made_here = re.findall(r"--output (\S+)", "\n".join(line for line in lines if not UNDERSTOOD.search(line)))
    ignored = shutil.ignore_patterns(*(name for name in MADE_BEFORE if name in made_here))
    shutil.copytree(furnished, tmp_path / "place", ignore=ignored)
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's own calls
    names = {}
    for language, listing in blocks(page):
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", listing):
            Path(named[1]).write_text(listing)
        elif language == "python":
            names = names or names_of_a_script(MODEL)
            exec(compile(small_code(listing), path.name, "exec"), names)
        elif language == "bash":
            for command in commands(listing):
                run_line(command, monkeypatch)
    assert [left for left in LEFT.get(path.stem, ()) if not Path(left).exists()] == []
    if path.stem == "extend":
        plans = [PrunePlan.load(name) for name in ("pruned", "again", "thrifty")]
        assert [str(each) for each in plans[0].removed] == ["attention.3", "mlp.3"]
        assert plans[1].scorer == {"name": "costly.Rise", "bonus": 0.1}
        assert plans[2].search == {"name": "thrifty.halves"}


def run_line(command, monkeypatch):
    if UNDERSTOOD.search(command):
        if "lit-prune" in command:
            require_understood_options(command, monkeypatch)
    elif command.startswith("lit-prune"):
        monkeypatch.setattr("sys.stdin", io.StringIO("how are you?\n"))
        monkeypatch.setattr("sys.argv", ["lit-prune", *small_command(command)])
        run_command(command)
    else:
        assert command.startswith(OTHER_PROGRAMS), command


def require_understood_options(command, monkeypatch):
    words = shlex.split(command)
    verb = next(place for place, word in enumerate(words) if word in VERBS)
    arguments = [*words[verb:], "--print_config"]
    monkeypatch.setattr("sys.argv", ["lit-prune", *arguments])
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_guides_are_short_and_end_in_what_a_reader_sees(path):
    page = path.read_text()
    assert len(page.splitlines()) <= 150
    assert len(page.split()) <= 900
    assert re.findall(r"^## (.*)", page, re.MULTILINE)[-1] in ("What you see", "What comes of it")


def test_links_between_pages_go_to_files_of_the_repository():
    links = [
        (page.relative_to(ROOT), link)
        for page in DOCS.rglob("*.md")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    ]
    assert len(links) > 60
    assert [(page, link) for page, link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    made = {path.stem for path in DOCS.glob("reference/*.md") if "while the site is built" in path.read_text()}
    assert made == set(PAGES)


def test_no_text_names_what_a_reader_cannot_have():
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("configs/**/*.yaml")]
    found = [f"{page.relative_to(ROOT)}: {hit[0]}" for page in pages for hit in FORBIDDEN.finditer(page.read_text())]
    assert len(pages) > 40
    assert found == []


def test_the_reference_has_every_option_of_every_verb():
    from lit_prune.commands import bench, heal, prune

    page = PAGES["command-line"]()
    assert re.findall(r"^## (\w+)", page, re.MULTILINE) == list(VERBS)
    verbs = ((prune.prune_model, ["refit"]), (heal.heal_model, ["lora", "training"]), (bench.bench_scale, []))
    for function, nested in verbs:
        names = list(option_types(function, nested))[1:]
        assert [name for name in names if f"`--{name} " not in page and f"`--{name}, " not in page] == []
    assert "`--trainer.NAME VALUE`" in page
    assert "`--trainer.max_epochs" not in page, "Lightning tells it"
    assert [code for line in page.splitlines() for code in line.split("`")[1::2] if "\\" in code] == []
    assert "`--data.window " in page


def test_the_reference_has_every_scorer_search_method_and_field():
    from dataclasses import fields

    from lit_prune.plan import PrunePlan, PruneStep, method_names
    from lit_prune.scorers import SCORERS
    from lit_prune.searches import SEARCHES

    for name, registered in (("scorers", SCORERS), ("searches", SEARCHES), ("methods", method_names())):
        assert re.findall(r"^## (\S+)", PAGES[name](), re.MULTILINE) == list(registered)
    plan = PAGES["plan"]()
    names = [field.name for kind in (PrunePlan, PruneStep) for field in fields(kind)]
    assert [name for name in names if f"| `{name}` |" not in plan] == []
    assert "`amount`: default `null`" in PAGES["yaml"]()
    assert "::: lit_prune.prune\n" in PAGES["python"]()


def test_the_reference_of_python_shows_functions_not_the_modules_of_their_names():
    paths = re.findall(r"^::: (\S+)", PAGES["python"](), re.MULTILINE)
    found = {path: pkgutil.resolve_name(re.sub("^callbacks", "lit_prune.callbacks", path)) for path in paths}
    homes = {path: f"{getattr(named, '__module__', '')}.{path.rpartition('.')[2]}" for path, named in found.items()}
    assert [path for path, home in homes.items() if re.search(r"\.(\w+)\.\1$", home) and path != home] == []
    assert {"lit_prune.healing.heal.heal", "lit_prune.plan.Recipe"} <= set(paths)


def test_every_page_links_papers_and_pictures_and_breaks_no_option():
    page = '<p>(LoRA, arXiv 2106.09685) <code>--num_windows 2402.02834</code> <a href="x">2402.09025</a></p>'
    paper = '<a href="https://arxiv.org/abs/2106.09685">arXiv 2106.09685</a>'
    option = '<code><span class="whole">--num_windows</span> 2402.02834</code>'
    assert FINISH(page, None, None, None) == f'<p>(LoRA, {paper}) {option} <a href="x">2402.09025</a></p>'
    assert FINISH('<img alt="a" src="b.svg">', None, None, None) == '<a href="b.svg"><img alt="a" src="b.svg"></a>'
    table = "<table><tr><th>a</th></tr><tr><td>1</td><td>{}</td></tr></table>"
    assert 'class="long"' not in FINISH(table.format("short"), None, None, None)
    assert FINISH(table.format("long " * 9), None, None, None).count('<td class="long">long') == 1
