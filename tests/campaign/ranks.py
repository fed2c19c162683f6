"""One of two processes that share a search is killed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

from tests.campaign import children
from tests.campaign.children import Child
from tests.campaign.world import Case, World

BOUND = 60.0
"""Seconds within which the process that is left must end."""


def killed(rank: int) -> Case:
    """By its rank, while scoring; the same command, of two processes again, goes on."""
    undisturbed: list[Path] = []

    def case(world: World, chance: Random) -> str:
        if not undisturbed:
            undisturbed.append(world.case())
            world.require(_start(world, undisturbed[0]).wait() == 0, "two processes fail undisturbed")
        folder = world.case()
        child = _start(world, folder)
        _wait_for_lines(world, folder / "out.search.jsonl", child, chance.randrange(2, 100))
        # The first process starts the second.
        os.kill(child.pid if rank == 0 else _started_by(child.pid), signal.SIGKILL)
        begin = time.monotonic()
        while _is_running(child):
            world.require(time.monotonic() - begin < BOUND, "the process that is left hangs")
            time.sleep(0.05)
        world.require(not world.require_whole("prune", folder), "killed, and the result is there")
        world.require(_start(world, folder).wait() == 0, "the same command does not go on")
        world.undisturbed["prune"], before = undisturbed[0], world.undisturbed["prune"]
        try:
            world.require_same("prune", folder)
        finally:
            world.undisturbed["prune"] = before
        shutil.rmtree(folder)
        return f"the other ended within {BOUND:.0f} s; the same command went on"

    return case


def _start(world: World, folder: Path) -> Child:
    return children.start(world.prune(folder, "--devices", "2"), world.log)


def _wait_for_lines(world: World, journal: Path, child: Child, number: int) -> None:
    while not journal.exists() or journal.read_bytes().count(b"\n") < number:
        world.require(child.poll() is None, "it ended before it was killed")
        world.require(child.seconds < children.PATIENCE, "it hangs")


def _started_by(pid: int) -> int:
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(each) for each in started if b"lit_prune" in Path(f"/proc/{each}/cmdline").read_bytes())


def _is_running(child: Child) -> bool:
    """Any process of its session."""
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:
        return False
    return True
