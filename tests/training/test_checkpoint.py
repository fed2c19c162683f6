"""The language model out of any module's checkpoint, as a folder that transformers loads."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_prune import LitCausalLM, load
from lit_prune.__main__ import main
from lit_prune.errors import ModelError
from lit_prune.export import save
from lit_prune.plan import PrunePlan
from lit_prune.surgery import removed_sublayers
from lit_prune.training import load_checkpoint
from tests.callbacks.test_sublayer_prune import VAL, OwnModule, loaders, pruning, trainer
from tests.tiny import character_tokenizer, tiny_model

TOKENS = VAL[0]["input_ids"][None]


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS, use_cache=False).logits


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    place = tmp_path_factory.mktemp("dense")
    return save(tiny_model("llama"), place / "model", tokenizer=character_tokenizer())


class Several(OwnModule):
    def __init__(self):
        super().__init__("llama")
        self.teacher = tiny_model("llama", seed=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of the user's own module with two models, one of them pruned and healed; adapters are in it."""
    folder = tmp_path_factory.mktemp("own")
    module, last = Several(), ModelCheckpoint(folder, save_last=True)
    pruned, expected = pruning(healing=True, model="net.lm"), []

    class Look(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            expected.append(logits(pl_module.net["lm"]))
            pl_module.train()

    with pytest.warns(UserWarning, match="another copy of the model at 'teacher'"):
        trainer(folder, pruned, last, Look(), max_epochs=2).fit(module, *loaders())
    return folder / "last.ckpt", expected[-1], set(pruned.plan.removed)


def test_a_checkpoint_of_any_module_becomes_a_folder(checkpoint, dense, tmp_path, capsys):
    path, expected, removed = checkpoint
    arguments = ["export", str(path), "--format=hf", "--model", str(dense), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--part=net.lm"]) == 0
    found = load(tmp_path / "out")
    assert set(removed_sublayers(found)) == removed
    assert torch.allclose(logits(found), expected, atol=1e-5)
    assert set(PrunePlan.load(tmp_path / "out").removed) == removed
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_a_checkpoint_that_names_its_model_needs_no_more(dense, tmp_path):
    module = LitCausalLM(str(dense))
    trainer(tmp_path, pruning(), ModelCheckpoint(tmp_path, save_last=True), max_epochs=1).fit(module, *loaders())
    assert (
        main(["export", str(tmp_path / "last.ckpt"), "--format=hf-remote-code", "--output", str(tmp_path / "out")]) == 0
    )
    assert torch.allclose(logits(load(tmp_path / "out")), logits(module.model), atol=1e-5)


def test_what_is_no_copy_of_the_model_is_told(checkpoint, dense, tmp_path, capsys):
    path = checkpoint[0]
    with pytest.raises(ModelError, match=r"holds 0 copies of this model \(none\)"):
        load_checkpoint(path, dense, part="other")
    other = save(tiny_model("gpt2"), tmp_path / "gpt2")
    with pytest.raises(ModelError, match="holds 0 copies"):
        load_checkpoint(path, other)
    torch.save({"state_dict": 5}, tmp_path / "bad.ckpt")
    with pytest.raises(ModelError, match="is no checkpoint of Lightning's"):
        load_checkpoint(tmp_path / "bad.ckpt", dense)
    (tmp_path / "shards.ckpt").mkdir()
    with pytest.raises(ModelError, match="fabric consolidate"):
        load_checkpoint(tmp_path / "shards.ckpt", dense)
    assert main(["export", str(path), "--format=hf", "--output", str(tmp_path / "out")]) == 2
    assert "does not name its model" in capsys.readouterr().err
    assert main(["export", str(dense), "--format=hf", "--part=a", "--output", str(tmp_path / "out")]) == 2
    assert "for checkpoints of Lightning's" in capsys.readouterr().err


def test_two_copies_are_told_apart_by_name(dense, tmp_path):
    state = {
        f"{path}.{name}": each for path in ("a", "b.lm") for name, each in tiny_model("llama").state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "two.ckpt")
    with pytest.raises(ModelError, match=r"holds 2 copies of this model \(a, b\.lm\)"):
        load_checkpoint(tmp_path / "two.ckpt", dense)
    found, plan = load_checkpoint(tmp_path / "two.ckpt", dense, part="b.lm")
    assert plan is None
    assert torch.equal(logits(found), logits(tiny_model("llama")))
