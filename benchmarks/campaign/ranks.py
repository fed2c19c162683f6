"""One of two processes that share a search, or a sharded fit, is killed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

from benchmarks.campaign import children
from benchmarks.campaign.children import Child
from benchmarks.campaign.world import LEFT, Case, World

BOUND = 60.0
"""Seconds within which the process that is left must end."""
SHARDS = ["ModelParallelStrategy", "data_parallel_size=2", "tensor_parallel_size=1"]
TWO = {
    "prune": ["--devices", "2"],
    "fit_command": [
        "--trainer.devices=2",
        *(f"--trainer.strategy{sep}{value}" for sep, value in zip("=..", SHARDS, strict=True)),
    ],
}
"""What makes two processes of a program."""


def killed(rank: int, program: str = "prune") -> Case:
    """By its rank, while scoring or between checkpoints; the same command, of two processes again, goes on."""
    undisturbed: list[Path] = []

    def case(world: World, chance: Random) -> str:
        if not undisturbed:
            undisturbed.append(world.case())
            world.require(_start(world, program, undisturbed[0]).wait() == 0, "two processes fail undisturbed")
        folder = world.case()
        child = _start(world, program, folder)
        _wait_for_marks(
            world, folder, child, chance.randrange(2, 100) if program == "prune" else chance.randrange(1, 4)
        )
        # The first process starts the second.
        os.kill(child.pid if rank == 0 else _started_by(child.pid), signal.SIGKILL)
        begin = time.monotonic()
        while _is_running(child):
            world.require(time.monotonic() - begin < BOUND, "the process that is left hangs")
            time.sleep(0.05)
        world.require(child.poll() != 0, "killed, and the exit code says success")
        world.require(not world.result(program, folder).exists(), "killed, and the result is there")
        world.require(_start(world, program, folder).wait() == 0, "the same command does not go on")
        world.require_same(program, folder, undisturbed[0])
        left = sorted(path.name for path in folder.iterdir() if path.name not in LEFT)
        world.require(not left, f"{left} lies about")
        shutil.rmtree(folder)
        return f"the other ended within {BOUND:.0f} s; the same command went on"

    return case


def _start(world: World, program: str, folder: Path) -> Child:
    return children.start([*getattr(world, program)(folder), *TWO[program]], world.log)


def _wait_for_marks(world: World, folder: Path, child: Child, number: int) -> None:
    """Until a search has measured, or a fit has kept, so much."""
    journal = folder / "out.search.jsonl"
    while max(journal.exists() and journal.read_bytes().count(b"\n"), len([*folder.glob("kept/*.ckpt")])) < number:
        world.require(child.poll() is None, "it ended before it was killed")
        world.require(child.seconds < children.PATIENCE, "it hangs")


def _started_by(pid: int) -> int:
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in started if b"lit_prune" in Path(f"/proc/{child}/cmdline").read_bytes())


def _is_running(child: Child) -> bool:
    """Any process of its session."""
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:
        return False
    return True
