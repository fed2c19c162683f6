"""`lit-prune fit` in two processes, sharded and under DDP, however they are started: what one process does."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_prune import PrunePlan
from lit_prune.__main__ import main
from lit_prune.report import read_summary
from tests.callbacks.test_sharding import assert_same_weights
from tests.commands.test_fit import BIN, ENVIRONMENT, free_port, run
from tests.processes import in_torchrun

pytestmark = pytest.mark.filterwarnings("ignore")  # of LightningCLI, about its own libraries
SIZES = ["data_parallel_size=2", "tensor_parallel_size=1"]
STRATEGIES = {
    "shards": ["--trainer.strategy=ModelParallelStrategy", *(f"--trainer.strategy.{each}" for each in SIZES)],
    "ddp": ["--trainer.strategy=ddp"],
}


@pytest.fixture
def shared(config):
    """What two processes share evenly, without timings; every checkpoint is kept."""
    settings = yaml.safe_load(config.read_text())
    pruning, reporting, keeping, _ = settings["trainer"]["callbacks"]
    pruning["init_args"].update(amount=0.3, healing={"rank": 2})
    reporting["init_args"]["repeats"] = 0
    keeping["init_args"]["save_top_k"] = -1
    settings["data"]["val_windows"] = 8
    config.write_text(yaml.safe_dump(settings))
    return config


def leave_as_they_are(config, strategy):
    """Of shards, no refit changes weights."""
    if strategy == "shards":
        settings = yaml.safe_load(config.read_text())
        settings["trainer"]["callbacks"][0]["init_args"]["compensate"] = "none"
        config.write_text(yaml.safe_dump(settings))


def arguments(config, name, strategy=None, *more):
    """Of `lit-prune`: one process, or two that take as many windows a step."""
    folder = f"--trainer.logger.init_args.save_dir={config.parent / name}"
    two = [*STRATEGIES[strategy], "--trainer.devices=2", "--data.batch_size=2"] if strategy else []
    return ["fit", "--config", str(config), folder, *two, *more]


def fit(config, name, strategy=None, *more):
    """In this process, or in two that are forked from it."""
    command = arguments(config, name, strategy, *more)
    found = in_torchrun(config.parent, 2, lambda: main(command)) if strategy else [main(command)]
    assert set(found) == {0}
    return config.parent / name / "quickstart/version_0"


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same_run(found, expected, *, first_epoch=0):
    plan, other = PrunePlan.load(found / "pruned"), PrunePlan.load(expected / "pruned")
    assert [(each.removed, each.epoch) for each in plan.steps] == [(each.removed, each.epoch) for each in other.steps]
    assert len(plan.steps) > 2
    for step, its in zip(plan.steps, other.steps, strict=True):
        assert (step.nll_before, step.nll_after) == pytest.approx((its.nll_before, its.nll_after), abs=1e-5)
    assert_same_weights(found / "pruned", expected / "pruned")
    summary, its = read_summary(found / "summary.json"), read_summary(expected / "summary.json")
    assert summary.answers == its.answers
    for row, other_row in zip(summary.rows, its.rows, strict=True):
        assert (row.name, row.before, row.after) == (
            other_row.name,
            pytest.approx(other_row.before, rel=1e-4),
            pytest.approx(other_row.after, rel=1e-4),
        )
    names = {path.name for path in expected.iterdir() if "tfevents" not in path.name}
    assert {path.name for path in found.iterdir() if "tfevents" not in path.name} == names
    assert len(list(found.glob("*tfevents*"))) == 1, "one process logs"
    curves, its = scalars(found), scalars(expected)
    for name in ("val_ppl", "val_loss", "prune/parameters_left"):
        last = len(curves[name])
        assert last == len(its[name]) - first_epoch, "once for each epoch"
        assert curves[name] == [(step, pytest.approx(value, rel=1e-4)) for step, value in its[name][-last:]]


@pytest.mark.parametrize("strategy", ["shards", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does_and_go_on_from_its_checkpoints(shared, strategy, monkeypatch):
    leave_as_they_are(shared, strategy)
    # LightningCLI warns where arguments are given and the process has some too.
    monkeypatch.setattr("sys.argv", ["lit-prune"])
    alone = fit(shared, "alone")
    two = fit(shared, "two", strategy)
    assert_same_run(two, alone)
    checkpoint = two / "checkpoints/epoch-0.ckpt"
    assert checkpoint.is_dir() == (strategy == "shards")
    assert_same_run(fit(shared, "on", strategy, f"--ckpt_path={checkpoint}"), alone, first_epoch=1)


LAUNCHES = {
    "lit-prune": [BIN / "lit-prune"],
    "python -m": [sys.executable, "-m", "lit_prune"],
    "torchrun": [BIN / "torchrun", "--nproc-per-node=2", "PORT", "--no-python", BIN / "lit-prune"],
    "torchrun -m": [BIN / "torchrun", "--nproc-per-node=2", "PORT", "-m", "lit_prune"],
    "fabric run": [BIN / "fabric", "run", "--devices=2", "--accelerator=cpu", "PORT", BIN / "lit-prune"],
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("how", LAUNCHES)
def test_processes_of_every_launcher_do_what_one_does(shared, how, strategy, monkeypatch):
    leave_as_they_are(shared, strategy)
    monkeypatch.setattr("sys.argv", ["lit-prune"])
    alone = fit(shared, "alone")
    port = free_port() if how == "fabric run" else free_port().replace("main", "master")
    launch = [port if each == "PORT" else each for each in LAUNCHES[how]]
    result = run(*launch, *arguments(shared, "two", strategy))
    assert result.returncode == 0, result.stderr[-3000:]
    said = " ".join(result.stdout.split())  # long names of folders wrap lines
    told = [said.count(words) for words in ("before and after pruning", "summary.md", "written: ")]
    assert told == [1, 1, 2], "two processes, one of which tells: the summary, and the model"
    assert_same_run(shared.parent / "two/quickstart/version_0", alone)


def test_a_checkpoint_that_cannot_be_read_is_one_line_before_training(shared, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lit-prune"])
    half = shared.parent / "epoch-1.ckpt"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"0")

    def refused(path, *more):
        assert main([*arguments(shared, "out", *more), f"--ckpt_path={path}"]) == 2
        return capsys.readouterr().err

    assert "there is no checkpoint" in refused(shared.parent / "epoch-7.ckpt")
    assert "was not written to its end (no meta.pt)" in refused(half, "shards")
    (half / "meta.pt").write_bytes(b"PK")
    assert "meta.pt is damaged" in refused(half, "shards")
    torch.save({}, half / "meta.pt")
    for strategy in (None, "ddp"):
        assert "is a distributed checkpoint" in refused(half, strategy)
    assert not (shared.parent / "out").exists()


def test_settings_that_fit_no_launched_processes_are_one_line(shared, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lit-prune"])
    assert main([*arguments(shared, "out"), "--trainer.strategy=fsdp"]) == 2
    assert "the trainer cannot be made: " in capsys.readouterr().err

    def refused():
        sys.stderr = io.StringIO()
        return main([*arguments(shared, "out"), "--trainer.strategy=ddp"]), sys.stderr.getvalue()

    for code, said in in_torchrun(shared.parent, 2, refused):
        assert code == 2
        assert "2 processes were launched, and the trainer was told of 1" in said


def started(config, *more):
    """A fit without end, once its first checkpoint is there."""
    command = [BIN / "lit-prune", *arguments(config, "out", *more), "--trainer.max_epochs=9999"]
    process = subprocess.Popen(
        [str(each) for each in command], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((config.parent / "out").rglob("epoch-1.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def children(process):
    return [int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize(
    ("strategy", "rank", "number"),
    [
        pytest.param(None, 0, signal.SIGTERM, marks=pytest.mark.slow),
        ("shards", 0, signal.SIGTERM),
        pytest.param("shards", 1, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("ddp", 0, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("ddp", 1, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_told_to_end_ends_all(shared, strategy, rank, number):
    process = started(shared, strategy)
    others = children(process)
    os.kill(others[0] if rank else process.pid, number)
    code = process.wait(timeout=60)
    assert code == 143 if strategy is None else code != 0
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{each}").exists() for each in others):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)
    assert not (shared.parent / "out/quickstart/version_0/pruned").exists()
