"""Training steps that learn from the model as it was: their loss, what is given back, what is refused."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from lit_prune import Distillation, LitCausalLM
from lit_prune.errors import LitPruneError
from lit_prune.surgery import removed_sublayers
from tests.callbacks.test_sublayer_prune import OwnModule, loaders, module, pruning, trainer
from tests.tiny import tiny_model


def model_of(pl_module):
    return next(each for each in pl_module.modules() if isinstance(each, PreTrainedModel))


class Divergence(L.Callback):
    """Beside every training loss, the same from a second, untouched copy of the dense model."""

    def __init__(self, dense, temperature=1.0, cross_entropy=0.0, hidden=0.0):
        self.dense = dense.eval()
        self.temperature, self.cross_entropy, self.hidden = temperature, cross_entropy, hidden
        self.pairs, self.gone = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch

    def on_before_backward(self, trainer, pl_module, loss):
        model, ids = model_of(pl_module), self.batch["input_ids"]
        with torch.no_grad():
            taught, out = (each(input_ids=ids, labels=ids, output_hidden_states=True) for each in (self.dense, model))
        p, q = (F.softmax(each.logits[:, :-1] / self.temperature, dim=-1) for each in (taught, out))
        expected = (1 - self.cross_entropy) * self.temperature**2 * (p * (p / q).log()).sum(-1).mean()
        expected += self.cross_entropy * out.loss
        blocks = {each.block for each in removed_sublayers(model)}
        states = [(taught.hidden_states[block + 1], out.hidden_states[block + 1]) for block in blocks]
        ratios = [((a - b).square().sum(-1) / a.square().sum(-1)).mean() for a, b in states]
        expected += self.hidden * sum(ratios) / len(ratios)
        self.pairs.append((loss.item(), expected.item()))
        self.gone.append(len(blocks))


@pytest.mark.parametrize("make", [module, OwnModule], ids=["LitCausalLM", "own module"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0}, {"cross_entropy": 0.3}, {"hidden": 0.5}], ids=lambda each: ", ".join(each)
)
def test_the_loss_is_that_of_a_second_copy_of_the_dense_model(tmp_path, make, options):
    own = make()
    check = Divergence(copy.deepcopy(model_of(own)), **options)
    distill = Distillation(**options) if options else True
    callback = pruning(amount=0.4, healing=True, distill=distill)
    trainer(tmp_path, callback, check).fit(own, *loaders())
    assert len(set(check.gone)) > 1, "more went while it was trained"
    assert any(facts["ridge"] is not None for facts in callback.plan.compensation["refitted"].values())
    losses, expected = zip(*check.pairs, strict=True)
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_distillation_brings_the_model_nearer_to_the_dense_one(tmp_path):
    own = LitCausalLM(tiny_model("llama"), learning_rate=1e-2)
    check = Divergence(copy.deepcopy(own.model))
    callback = pruning(amount=None, schedule=2, every_n_epochs=99, healing=True, distill=True)
    trainer(tmp_path, callback, check, max_epochs=12).fit(own, *loaders())
    losses = [loss for loss, _ in check.pairs]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_module_gets_its_step_back_and_what_was_removed_is_freed(tmp_path):
    own, callback = module(), pruning(healing=True, distill=True)
    held = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            held.append("training_step" in vars(pl_module))

    trainer(tmp_path, callback, Look()).fit(own, *loaders())
    assert held == [True] * len(held) != []
    assert "training_step" not in vars(own)
    assert callback.mending._teacher is None
    total = sum(each.numel() for each in own.model.parameters())
    assert total == callback.plan.model.num_parameters - callback.plan.num_removed_parameters


def test_the_step_is_given_back_after_an_error(tmp_path):
    class Broken(L.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("broken")

    own = module()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, pruning(healing=True, distill=True), Broken()).fit(own, *loaders())
    assert "training_step" not in vars(own)


class ByHand(OwnModule):
    def __init__(self):
        super().__init__("llama")
        self.automatic_optimization = False


class Twice(OwnModule):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + super().training_step(batch, batch_idx)


class Embedded(OwnModule):
    def training_step(self, batch, batch_idx):
        model, ids = self.net["lm"], batch["input_ids"]
        return model(inputs_embeds=model.get_input_embeddings()(ids), labels=ids).loss


@pytest.mark.parametrize(
    ("make", "message"),
    [(ByHand, "optimizes by hand"), (Twice, "one pass of the model"), (Embedded, "given input_ids")],
)
def test_modules_that_cannot_be_taught_are_refused(tmp_path, make, message):
    with pytest.raises(LitPruneError, match=message):
        trainer(tmp_path, pruning(healing=True, distill=True)).fit(make(), *loaders())


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(LitPruneError, match="distill wants healing"):
        pruning(distill=True)
