"""Gradients of steps over several batches and processes, against that of the mean over all of a step's tokens."""

import os

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from lit_prune import LitCausalLM
from lit_prune.healing import HealingSettings, LoraHealing, heal
from tests.processes import in_torchrun
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
GENERATOR = torch.Generator().manual_seed(0)


def batch(num_tokens):
    """One sequence with so many labels that are predicted."""
    ids = torch.randint(3, 128, (1, 16), generator=GENERATOR)
    labels = ids.clone()
    labels[:, : 16 - num_tokens] = -100
    return {"input_ids": ids, "labels": labels}


BATCHES = [batch(number) for number in (15, 3, 0, 9, 12, 1)]


class Gradients(L.Callback):
    """What hooks see before every optimizer step, adapters' where there are some."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = [each.grad for each in pl_module.parameters() if each.requires_grad]
        self.seen.append(torch.cat([each.flatten() for each in grads]).tolist())


class Choosy(LitCausalLM):
    """Leaves out batches with few tokens; Lightning calls hooks of callbacks before those of the module."""

    def configure_gradient_clipping(self, optimizer, *_, **__):
        self.trainer.callbacks[0].seen.pop()
        self.trainer.callbacks[0].on_before_optimizer_step(self.trainer, self, optimizer)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if (batch["labels"] != -100).sum() > 5 else None


def gradients(folder, batches, make=LitCausalLM, **options):
    """Of a training in which no weight moves."""
    callback = Gradients()
    run = L.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **{"devices": 1, **options},
    )  # fmt: skip
    run.fit(make(tiny_model("llama"), learning_rate=0.0), DataLoader(batches, batch_size=None))
    return callback.seen


def of_all_tokens(batches, model=None):
    """By torch alone."""
    model = model or tiny_model("llama")
    losses, number = 0, 0
    for each in batches:
        logits, labels = model(each["input_ids"]).logits[:, :-1], each["labels"][:, 1:]
        losses += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        number += (labels != -100).sum()
    trained = [each for each in model.parameters() if each.requires_grad]
    grads = torch.autograd.grad(losses / max(number, 1), trained)
    return torch.cat([each.flatten() for each in grads])


def assert_close(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (torch.tensor(ours) - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("number", [1, 2, 4])
def test_accumulated_batches_count_by_their_tokens(tmp_path, number):
    expected = [of_all_tokens(BATCHES[first : first + number]) for first in range(0, 6, number)]
    assert_close(gradients(tmp_path, BATCHES, accumulate_grad_batches=number), expected)


@pytest.mark.parametrize("number", [2, 3])
def test_batches_that_are_left_out_do_not_count(tmp_path, number):
    counted = [[BATCHES[0]], [BATCHES[3]], [BATCHES[4]]] if number == 2 else [[BATCHES[0]], BATCHES[3:5]]
    found = gradients(tmp_path, BATCHES, Choosy, accumulate_grad_batches=number)
    assert_close(found, [of_all_tokens(each) for each in counted])


def test_a_scaler_changes_nothing(tmp_path):
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
    found = gradients(tmp_path, BATCHES, accumulate_grad_batches=3, plugins=[scaler])
    assert_close(found, [of_all_tokens(BATCHES[:3]), of_all_tokens(BATCHES[3:])], 2e-2)


def test_batches_of_other_processes_count_by_their_tokens(tmp_path):
    def share():
        rank = int(os.environ["RANK"])
        options = {"accumulate_grad_batches": 2, "devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
        return gradients(tmp_path, BATCHES[rank::2], **options)

    first, second = in_torchrun(tmp_path, 2, share)
    assert first == second
    assert_close(first, [of_all_tokens(BATCHES[:4]), of_all_tokens(BATCHES[4:])])


def test_healing_counts_them_too():
    windows = torch.randint(3, 128, (4, 16), generator=GENERATOR)
    settings = HealingSettings(tokens=4 * 16, learning_rate=1e-9, warmup=0, validations=1)
    seen, model = Gradients(), tiny_model("llama")
    # Two batches of two windows, in one step.
    heal(model, windows, windows, lora=LoraHealing(rank=2), settings=settings, batch_size=2, progress=False,
         accelerator="cpu", accumulate_grad_batches=2, callbacks=[seen])  # fmt: skip
    expected = of_all_tokens([{"input_ids": windows, "labels": windows}], model)
    assert_close(seen.seen[:1], [expected], 1e-4)
