"""What a machine runs out of, forbids, or shares: disk, permission, memory, a steady clock, one folder for two."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.campaign import children
from benchmarks.campaign.world import Case, World

NOBODY = 65534


def full_disk(program: str) -> Case:
    """A file system of a few kilobytes, and then of enough."""

    def case(world: World, chance: Random) -> str:
        size = sum(file.stat().st_size for file in _files(world.undisturbed[program]))
        folder = world.case()
        # Whole pages; the smallest has room for nothing but the first lines.
        room = chance.randrange(2, max(3, size // 4096)) * 4096
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", folder], check=True)
        try:
            code = world.fork(program, folder).wait()
            said = world.log.read_text(errors="replace")
            if code == 0:
                world.require_same(program, folder)
                return "there was room enough"
            world.require("No space left" in said, "nothing is said about the disk")
            world.require(not world.require_whole(program, folder), "failed, and the result is there")
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
            code = world.fork(program, folder).wait()
            world.require(code == 0, "the same command does not go on")
            world.require_same(program, folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()
        return "error; with room, the same command ends well"

    return case


def limited_files(program: str) -> Case:
    """No file may grow beyond a size: the first that would ends the run."""

    def case(world: World, chance: Random) -> str:
        largest = max(file.stat().st_size for file in _files(world.undisturbed[program]))
        folder = world.case()
        code = world.fork(program, folder, partial(_limit, chance.randrange(20_000, largest + 1000))).wait()
        if code == 0:
            world.finish(program, folder)
            return "there was room enough"
        world.require(not world.require_whole(program, folder), "failed, and the result is there")
        world.finish(program, folder)
        return "error; with room, the same command ends well"

    return case


def _limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def forbidden(world: World, chance: Random) -> str:
    """Without root's rights: a folder that others own, a journal that others own, a model that cannot be read."""
    world.undisturbed["prune"]
    folder = world.case()
    what = chance.choice(("folder", "journal", "model"))
    closed = folder / "out.search.jsonl"
    if what != "folder":
        os.chown(folder, NOBODY, NOBODY)
    if what == "journal":
        closed.touch(0o600)
    if what == "model":
        closed = world.dense / "model.safetensors"
        closed.chmod(0o000)
    try:
        code = world.fork("prune", folder, partial(_give_up_root, world.prune(world.case()))).wait()
    finally:
        (world.dense / "model.safetensors").chmod(0o644)
    said = world.log.read_text(errors="replace")
    world.require(code == 2 and "lit-prune: error" in said, f"no error of ours, but {code}")
    # Of what it may not read, safetensors says that it is not there.
    expected = "cannot load the model" if what == "model" else "ermission denied"
    world.require(expected in said, "permission is not what the error is about")
    world.require(not (folder / "out").exists(), "something has the final name")
    closed.unlink(missing_ok=True) if what == "journal" else None
    world.finish("prune", folder)
    return f"error about the {what}; permitted, the same command ends well"


def _give_up_root(arguments: list[str]) -> None:
    # Python itself may lie where only root reads: what is imported late is imported here.
    children.command(arguments)()
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def little_memory(world: World, chance: Random) -> str:
    """A device whose memory is full with more than n sequences at a time; with none at 0."""
    world.undisturbed["prune"]
    folder, room = world.case(), chance.choice((0, 1))
    code = world.fork("prune", folder, partial(_full_above, room)).wait()
    said = world.log.read_text(errors="replace")
    if room == 0:
        world.require(code != 0 and "memory" in said and not (folder / "out").exists(), f"ended with {code}")
        world.finish("prune", folder)
        return "not one sequence fits: error; with memory, the same command ends well"
    world.require(code == 0 and "does not fit into memory" in said, f"nothing is said, {code}")
    world.require_same("prune", folder)
    shutil.rmtree(folder)
    return "one sequence at a time, said aloud: same plan and weights"


def _full_above(room: int) -> None:
    import torch
    from torch import nn

    def allocate(module: nn.Module, inputs: tuple[object, ...]) -> None:
        states = inputs[0] if isinstance(module, nn.Linear | nn.Embedding) else None
        # The proof that a model is understood runs before the search, on one short sequence.
        if isinstance(states, torch.Tensor) and len(states) > room and states.shape[1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")

    nn.modules.module.register_module_forward_pre_hook(allocate)


def jumping_clock(program: str) -> Case:
    """Every reading of the time may be hours off, ahead or back."""

    def case(world: World, chance: Random) -> str:
        world.undisturbed[program]
        folder = world.case()
        code = world.fork(program, folder, partial(_unsteady, chance.random())).wait()
        world.require(code == 0, f"ended with {code}")
        world.require_same(program, folder)
        shutil.rmtree(folder)
        return "same plan and weights"

    return case


def _unsteady(seed: float) -> None:
    chance = Random(seed)
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, partial(_jump, getattr(time, name), chance))


def _jump(steady: Callable[[], float], chance: Random) -> float:
    return steady() + chance.choice((0.0, 0.0, 7200.0, -7200.0, 1e6))


def rivals(program: str) -> Case:
    """The same command twice at once."""

    def case(world: World, chance: Random) -> str:
        whole = world.seconds_of(program)
        folder = world.case()
        first = children.fork(world.work(program, folder), world.base / "first.txt")
        time.sleep(chance.uniform(0, whole))
        second = world.fork(program, folder)
        codes = [first.wait(), second.wait()]
        world.require(sorted(codes) in ([0, 0], [0, 2], [0, 1]), f"they ended with {codes}")
        world.require_whole(program, folder)
        world.require(world.result(program, folder).exists(), "none has written it")
        said = (world.base / "first.txt").read_text() + world.log.read_text()
        expected = ("another process is searching", "another fit is", "not empty", "exists", "in the way")
        world.require(codes == [0, 0] or any(message in said for message in expected), "the error does not tell why")
        shutil.rmtree(folder)
        return "one ends well, the other with an error" if codes != [0, 0] else "both end well, one after the other"

    return case
