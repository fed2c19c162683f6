"""Processes that end in the middle: by force, by SIGTERM, by Ctrl-C, at random moments and at accesses to files."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.campaign import children
from benchmarks.campaign.world import Case, World


def at_random_moments(program: str, number: int = signal.SIGKILL) -> Case:
    """Struck up to three times on its way, each time gone on with by the same command; told is where at last."""

    def case(world: World, chance: Random) -> str:
        folder = world.case()
        whole = world.seconds_of(program)
        struck = 0
        for _ in range(3):
            child = world.fork(program, folder)
            code = child.strike(chance.uniform(0.05, 1) * whole, number)
            _require_ended(world, code, number)
            struck += code != 0
            if world.require_whole(program, folder):
                break
        where = _where(folder, child.said())
        world.finish(program, folder)
        return f"{where}: went on" if struck else "was done before"

    return case


def at_an_access(program: str) -> Case:
    """Killed before one of its accesses to files of its output, each in its turn."""
    turn = 0

    def case(world: World, chance: Random) -> str:
        nonlocal turn
        turn += 1
        folder = world.case()
        child = world.fork(program, folder, partial(children.kill_at, turn, folder))
        code = child.wait()
        world.require(code in (0, -signal.SIGKILL), f"ended with {code}")
        done = world.require_whole(program, folder)
        world.finish(program, folder)
        if code == 0:
            turn = 0
            return "was done before"
        return "the result is whole" if done else "the same command ends well"

    return case


def as_started_by_users(world: World, chance: Random) -> str:
    """`python -m lit_prune prune`, killed once its journal has some lines."""
    folder = world.case()
    world.undisturbed["prune"]
    child = children.start(world.prune(folder), world.log)
    journal, lines = folder / "out.search.jsonl", chance.randrange(1, 100)
    while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < lines):
        world.require(child.seconds < children.PATIENCE, "it hangs")
    code = child.strike(0) if child.poll() is None else child.wait()
    world.require(code in (0, -signal.SIGKILL), f"ended with {code}")
    world.require_whole("prune", folder)
    child = children.start(world.prune(folder), world.log)
    world.require(child.wait() == 0 or code == 0, "the same command does not go on")
    world.finish("prune", folder)
    return "while scoring: went on" if code else "was done before"


def _require_ended(world: World, code: int, number: int) -> None:
    # Stopped by Ctrl-C, Lightning's Trainer ends with 1.
    allowed = (0, 1, 130) if number == signal.SIGINT else (0, -number)
    world.require(code in allowed, f"ended with {code}")


def _where(folder: Path, said: str) -> str:
    """What the last strike found."""
    if any(path.exists() for path in (folder / "out", folder / "pruned")):
        return "when it was saved"
    if any(folder.glob(".*.part")):
        return "while saving"
    if (folder / "kept").exists():
        return "between checkpoints"
    journal = folder / "out.search.jsonl"
    if journal.exists() and journal.read_bytes().count(b"\n") > 1:
        return "while scoring"
    return "while healing" if "GPU available" in said else "before that"
