"""The paper's table: figures by hand, in one run that goes on, with what was published beside."""

import math

import pytest
import torch
import yaml

from benchmarks import paper
from benchmarks.paper import PUBLISHED, Published, main, paper_table, read_published
from lit_prune.evaluation import Result, shaped
from lit_prune.loading.models import load
from tests import naive
from tests.snippets import SENTENCE

SIZES = ["--window=16", "--num_windows=4", "--batch_size=2", "--amount=0.15", "--new_tokens=2", "--repeats=1"]


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "train.txt").write_text(SENTENCE * 40)
    (tmp_path / "test.txt").write_text(SENTENCE * 9)
    return [f"--data={tmp_path / 'train.txt'}", f"--test={tmp_path / 'test.txt'}", "--data_name=null", "--tasks=[]"]


def table_of(page):
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_every_line_is_measured_on_all_of_the_test_text_and_the_same_command_goes_on(
    model_folder, texts, tokenizer, tmp_path, capsys, monkeypatch
):
    published = Published(0, "Tiny", "nri", "a paper", removed="15 %", ppl=12.5, faster=1.37)
    monkeypatch.setattr(paper, "read_published", lambda number: [published])
    arguments = [str(model_folder), f"--output={tmp_path / 'out'}", "--methods=[nri, shortgpt]", "--dtype=float32"]
    assert main([*arguments, *texts, *SIZES]) == 0
    page = (tmp_path / "out/paper.md").read_text()
    assert page in capsys.readouterr().out
    dense, nri, beside, shortgpt = table_of(page)
    assert [row["line"] for row in (dense, nri, shortgpt)] == ["dense", "nri", "shortgpt"]
    assert beside["line"] == "nri, published for Tiny (a paper)"
    assert [beside[name] for name in ("removed", "ppl test", "faster, as published", "prefill")] == [
        "15 %", "12.50", "1.37", "-",
    ]  # fmt: skip
    tokens = torch.tensor(tokenizer(SENTENCE * 9)["input_ids"])
    windows = tokens[: len(tokens) // 16 * 16].view(-1, 16)
    assert f"{len(windows)} of the test text" in page
    by_hand = math.exp(naive.mean_loss(load(str(model_folder)), [{"input_ids": windows}]))
    assert float(dense["ppl test"]) == pytest.approx(by_hand, abs=0.01)
    assert dense["search, passes"] == "-"
    assert float(nri["search, passes"]) > float(shortgpt["search, passes"]) == 1
    monkeypatch.setattr(paper.Loading, "model", lambda *_: pytest.fail("what is there is not measured again"))
    assert main([*arguments, *texts, *SIZES]) == 0
    assert (tmp_path / "out/paper.md").read_text() == page


def test_what_was_published_is_of_models_that_there_are_and_nothing_is_invented_for_others():
    sizes = {line["parameters"] for line in yaml.safe_load(PUBLISHED.read_text())}
    shapes = ("llama-2-7b", "llama-3.1-8b", "llama-2-70b")
    assert sizes == {sum(each.numel() for each in shaped(name).parameters()) for name in shapes}
    assert read_published(134_515_008) == []


def test_a_publication_of_no_line_comes_last():
    row = Result("m", "dense", {}, 0.0, 10, 0.0, 0.0, {"WikiText-2": 5.0}, {}, 1.0, 1.0, 2, 0.0, ())
    lines = [Published(10, "M", "other", "x"), Published(10, "M", "dense", "y", ppl=5.47)]
    assert [line["line"] for line in table_of(paper_table([row], lines))] == [
        "dense", "dense, published for M (y)", "other, published for M (x)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods=[fast]"], "unknown method 'fast'"),
        (["--amount=2"], "above 0 and below 1"),
        (["--num_windows=1000"], "1000 are asked for"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(model_folder, texts, tmp_path, capsys, arguments, message):
    assert main([str(model_folder), f"--output={tmp_path / 'out'}", *texts, *SIZES, *arguments]) == 2
    assert message in capsys.readouterr().err
