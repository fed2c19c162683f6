"""The figures before and after, against the model itself."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_prune.callbacks import BeforeAfterCallback

from lit_prune.evaluation import answer
from lit_prune.report import read_summary
from tests import naive
from tests.callbacks.test_sublayer_prune import VAL, loaders, module, pruning, trainer
from tests.tiny import tiny_model

HELD_OUT = [{"input_ids": torch.stack([each["input_ids"] for each in VAL])[:, 2:]}]


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]

    def test_dataloader(self):
        return HELD_OUT


@pytest.fixture
def reported(monkeypatch):
    """The rows of every summary that is shown."""
    seen = []
    monkeypatch.setattr("lit_prune.callbacks.before_after.print_summary", lambda summary: seen.append(summary.rows))
    return seen


def test_figures_are_those_of_the_model_before_and_after(tmp_path, reported, tokenizer):
    model, dense = module(), tiny_model("llama")
    model.tokenizer = tokenizer
    callback = BeforeAfterCallback("how?", max_new_tokens=5, prompt_tokens=8, new_tokens=2, repeats=1)
    trained = trainer(tmp_path, pruning(healing=True), callback)
    trained.fit(model, datamodule=Data())
    rows = {row.name: row for row in reported[0]}
    parameters, ppl = rows["parameters"], rows["perplexity on held-out text"]
    assert parameters.before == sum(each.numel() for each in dense.parameters())
    assert parameters.after == sum(each.numel() for each in model.model.parameters())
    assert ppl.before == pytest.approx(torch.tensor(naive.mean_loss(dense, HELD_OUT)).exp().item(), rel=1e-4)
    assert ppl.after == pytest.approx(
        torch.tensor(naive.mean_loss(model.model.eval(), HELD_OUT)).exp().item(), rel=1e-4
    )
    assert sum("prefill" in name or "decoding" in name for name in rows) == 2
    page = (tmp_path / "summary.md").read_text()
    assert "how?" in page
    assert "Ideal: without the time of what went" in page
    assert "how?" in (tmp_path / "report.html").read_text()
    summary = read_summary(tmp_path / "summary.json")
    assert list(summary.rows) == reported[0]
    assert summary.plan == trained.callbacks[0].plan
    (said,) = summary.answers
    assert (said.question, said.after) == ("how?", answer(model.model, tokenizer, "how?", max_new_tokens=5))
    assert said.before == answer(dense, tokenizer, "how?", max_new_tokens=5)
    assert (tmp_path / "score_map.png").read_bytes().startswith(b"\x89PNG")


def test_without_test_data_the_row_says_which_text_it_was(tmp_path, reported):
    trainer(tmp_path, pruning(), BeforeAfterCallback(repeats=0)).fit(module(), *loaders())
    assert [row.name for row in reported[0]] == ["parameters", "perplexity on validation text"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_reports_the_dense_model_or_nothing(tmp_path, reported):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    dense = sum(each.numel() for each in tiny_model("llama").parameters())
    trainer(tmp_path, pruning(), BeforeAfterCallback(repeats=0), keep).fit(module(), *loaders())
    resumed = trainer(tmp_path, pruning(), BeforeAfterCallback(repeats=0))
    resumed.fit(module(), *loaders(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert reported[1] == reported[0]
    keep = ModelCheckpoint(tmp_path / "bare", save_top_k=-1, filename="{epoch}")
    trainer(tmp_path, pruning(), keep).fit(module(), *loaders())
    resumed = trainer(tmp_path, pruning(), BeforeAfterCallback(repeats=0))
    resumed.fit(module(), *loaders(), ckpt_path=tmp_path / "bare/epoch=0.ckpt")
    parameters, ppl = reported[2]
    assert parameters.before == dense
    assert ppl.before is None


def test_a_second_model_gets_its_own_figures(tmp_path, reported):
    callbacks = pruning(), BeforeAfterCallback(repeats=0)
    for architecture in ("llama", "gpt2"):
        trainer(tmp_path, *callbacks, max_epochs=1).fit(module(architecture), *loaders())
    expected = [sum(each.numel() for each in tiny_model(name).parameters()) for name in ("llama", "gpt2")]
    assert [rows[0].before for rows in reported] == expected
