"""The callback where the model is sharded over processes (FSDP2): plan, weights and checkpoints of one process."""

import gc
import os
import weakref

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lit_prune.callbacks import BeforeAfterCallback, SublayerAnalysisCallback
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from lit_prune import LitCausalLM, load, shard
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.surgery import removed_sublayers
from tests.callbacks.test_sublayer_prune import TRAIN, VAL, pruning, trainer
from tests.processes import in_torchrun
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of torch 2.6 needs a GPU"),
]


class Module(LitCausalLM):
    """With plain gradient descent: Adam makes steps of rounding where a gradient is next to nothing."""

    def configure_optimizers(self):
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=0.05, momentum=0.9)


class OwnModule(L.LightningModule):
    """A user's, which shards its model itself."""

    def __init__(self):
        super().__init__()
        self.net = tiny_model("qwen2").train()

    def configure_model(self):
        if self.device_mesh is not None:
            shard(self.net, self.device_mesh)

    def training_step(self, batch, batch_idx):
        return self.net(**batch, labels=batch["input_ids"]).loss

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.net(**batch, labels=batch["input_ids"]).loss)

    def configure_optimizers(self):
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=0.05, momentum=0.9)


def sharding(number, **options):
    return ModelParallelStrategy(data_parallel_size=number, tensor_parallel_size=1, **options)


def fit(folder, number, *, strategy=None, make=None, ckpt_path=None, extra=(), keep="ck", **options):
    """One training of three epochs in this process of `number`; the same batches, shared."""
    L.seed_everything(7, verbose=False)
    callback = pruning(**{"amount": 0.3, "save_to": "pruned", "compensate": "none", **options.pop("pruning", {})})
    model = make() if make else Module(tiny_model("llama"))
    strategy = strategy or (sharding(number) if number > 1 else "auto")
    checkpoint = ModelCheckpoint(folder / keep, save_top_k=-1, filename="{epoch}")
    options = {"devices": number, "strategy": strategy, "use_distributed_sampler": False, **options}
    run, rank = trainer(folder, callback, checkpoint, *extra, **options), int(os.environ.get("RANK", 0))
    # The batches of one process, of which each takes its sequences.
    train, val = (DataLoader(each[rank::number], batch_size=4 // number) for each in (TRAIN, VAL))
    run.fit(model, train, val, ckpt_path=ckpt_path)
    return [(step.removed.name, step.epoch, step.nll_before, step.nll_after) for step in callback.plan.steps]


def assert_same_plan(found, expected, **tolerance):
    assert [tuple(each[:2]) for each in found] == [tuple(each[:2]) for each in expected]
    for each, other in zip(found, expected, strict=True):
        assert each[2:] == pytest.approx(other[2:], **(tolerance or {"abs": 1e-5}))


def assert_same_weights(folder, expected):
    found, wanted = load(folder).state_dict(), load(expected).state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def fit_in_shards(folder, **options):
    """The training of `fit` in two processes with a shard each."""
    first, second = in_torchrun(folder, 2, lambda: fit(folder, 2, **options))
    assert first == second
    return first


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder and steps of a training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, fit(folder, 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The same of two processes with a shard each."""
    folder = tmp_path_factory.mktemp("shards")
    return folder, fit_in_shards(folder)


def test_two_processes_with_a_shard_each_do_what_one_does(alone, shards):
    assert_same_plan(shards[1], alone[1])
    assert_same_weights(shards[0] / "pruned", alone[0] / "pruned")


@pytest.mark.parametrize(
    "options",
    [
        {"pruning": {"healing": True, "search": "lazy"}},
        {"pruning": {"granularity": "mlp"}, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    ],
    ids=["healed, lazy", "mlps, accumulated, clipped"],
)
def test_they_do_so_however_they_train(tmp_path, options):
    expected = fit(tmp_path / "alone", 1, **options)
    assert_same_plan(fit_in_shards(tmp_path, **options), expected)
    assert_same_weights(tmp_path / "pruned", tmp_path / "alone/pruned")


class Held(L.Callback):
    """Whether what was removed is still held by anybody, and whether the optimizer holds what the model does."""

    def __init__(self):
        self.seen, self.num_alive, self.agrees = {}, [], []

    def on_train_start(self, trainer, pl_module):
        for name, each in pl_module.model.named_modules():
            if name.endswith(("self_attn", "mlp")):
                self.seen[name] = [weakref.ref(weight._local_tensor.untyped_storage()) for weight in each.parameters()]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        gc.collect()
        for each in pl_module.model.modules():
            if isinstance(each, FSDPModule):
                each.reshard()
        own = {id(each) for each in pl_module.parameters() if each.requires_grad}
        held = {id(each) for group in trainer.optimizers[0].param_groups for each in group["params"]}
        self.agrees.append(own == held)
        names = {"attention": "self_attn", "mlp": "mlp"}
        gone = [f"model.layers.{each.block}.{names[each.kind]}" for each in removed_sublayers(pl_module.model)]
        self.num_alive.append([sum(one() is not None for one in self.seen[name]) for name in gone])


def test_the_memory_of_what_went_is_free_and_the_optimizer_knows(tmp_path):
    def run():
        held = Held()
        fit(tmp_path, 2, extra=(held,))
        return {"alive": held.num_alive, "agrees": held.agrees}

    for found in in_torchrun(tmp_path, 2, run):
        assert len(found["alive"][-1]) > 2
        assert sum(map(sum, found["alive"])) == 0
        assert all(found["agrees"])


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    """What `shards` is, with checkpoints of one file each."""
    folder = tmp_path_factory.mktemp("one_file")
    return folder, fit_in_shards(folder, strategy=sharding(2, save_distributed_checkpoint=False))


@pytest.mark.parametrize(("saved", "number"), [("shards", 1), ("shards", 3), ("one_file", 1), ("one_file", 2)])
def test_checkpoints_go_on_with_another_number_of_processes(tmp_path, request, saved, number):
    folder, whole = request.getfixturevalue(saved)
    path = folder / "ck/epoch=0.ckpt"
    assert path.is_dir() == (saved == "shards")

    def go_on():
        # A single device reads one file; shards are for a strategy that shards.
        strategy = "auto" if number == 1 and saved == "one_file" else sharding(number)
        return fit(tmp_path / "on", number, strategy=strategy, ckpt_path=path)

    first, *others = in_torchrun(tmp_path, number, go_on)
    assert all(each == first for each in others)
    if number < 3:
        assert_same_plan(first, whole)
        assert_same_weights(tmp_path / "on/pruned", folder / "pruned")
    else:  # other batches from here on
        assert_same_plan(first[:3], whole[:3])
        assert {str(each) for each in removed_sublayers(load(tmp_path / "on/pruned"))} == {each[0] for each in first}


def test_a_checkpoint_of_one_process_goes_on_in_shards(tmp_path, alone):
    folder, whole = alone
    first, _ = in_torchrun(tmp_path, 2, lambda: fit(tmp_path / "on", 2, ckpt_path=folder / "ck/epoch=1.ckpt"))
    assert_same_plan(first, whole)
    assert_same_weights(tmp_path / "on/pruned", folder / "pruned")


def test_a_module_of_the_user_shards_and_resumes_itself(tmp_path):
    alone = fit(tmp_path / "alone", 1, make=OwnModule)
    whole, _ = in_torchrun(tmp_path, 2, lambda: fit(tmp_path / "whole", 2, make=OwnModule))
    assert_same_plan(whole, alone)
    path = tmp_path / "whole/ck/epoch=0.ckpt"
    again, _ = in_torchrun(tmp_path, 2, lambda: fit(tmp_path / "on", 2, make=OwnModule, ckpt_path=path))
    assert_same_plan(again, whole)
    assert_same_weights(tmp_path / "on/pruned", tmp_path / "whole/pruned")


def test_a_sharded_checkpoint_is_validated_by_a_module_that_was_never_pruned(tmp_path, shards):
    folder, _ = shards

    def run():
        model = Module(tiny_model("llama"))
        run = trainer(tmp_path, devices=2, strategy=sharding(2))
        (found,) = run.validate(
            model, DataLoader(VAL, batch_size=3), ckpt_path=folder / "ck/epoch=2.ckpt", verbose=False
        )
        return found["val_loss"], [str(each) for each in removed_sublayers(model.model)]

    (loss, removed), _ = in_torchrun(tmp_path, 2, run)
    pruned = load(folder / "pruned")
    assert removed == [str(each) for each in removed_sublayers(pruned)]
    ids = torch.stack([each["input_ids"] for each in VAL])
    assert loss == pytest.approx(pruned(ids, labels=ids).loss.item(), abs=1e-5)


def test_what_cannot_be_done_with_shards_is_refused_at_set_up(tmp_path):
    def refused(*extra, make=None, strategy=None, **options):
        try:
            fit(tmp_path, 2, extra=extra, make=make, strategy=strategy, pruning=options)
        except LitPruneError as error:
            return str(error)

    def run():
        return [
            refused(healing=True, distill=True),
            refused(scorer="taylor", amount=0.05),
            refused(of="latency"),
            refused(compensate="scale"),
            refused(BeforeAfterCallback()),
            refused(SublayerAnalysisCallback()),
            refused(strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)),
        ]

    found, _ = in_torchrun(tmp_path, 2, run)
    wanted = [
        "distill brings",
        "Taylor wants gradients",
        "latency of its sublayers",
        "compensation 'scale' changes whole weights",
        "give it repeats: 0",
        "take it out of trainer.callbacks",
        "tensor_parallel_size=1",
    ]
    for message, part in zip(found, wanted, strict=True):
        assert part in message
    run = trainer(tmp_path, pruning())
    run.strategy.__class__ = FSDPStrategy
    with pytest.raises(LitPruneError, match=r"FSDPStrategy is not supported; .* ModelParallelStrategy"):
        pruning().setup(run, Module(tiny_model("llama")), "fit")


def test_adapters_of_a_checkpoint_must_be_there_before_the_shards(tmp_path):
    def run():
        fit(tmp_path, 2, pruning={"healing": True})
        run = trainer(tmp_path, devices=2, strategy=sharding(2))
        try:
            run.validate(
                Module(tiny_model("llama")), DataLoader(VAL, batch_size=3), ckpt_path=tmp_path / "ck/epoch=0.ckpt"
            )
        except ModelError as error:
            return str(error)

    for message in in_torchrun(tmp_path, 2, run):
        assert "must be there before a model is sharded" in message
