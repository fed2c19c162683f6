"""Files that were cut short, or in which a bit has flipped: an error, or exactly what was written."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.campaign import children
from benchmarks.campaign.world import Case, World

PLACES = 40
"""Damaged places a case, for files that are read in milliseconds."""


def damaged(name: str, kind: str) -> Case:
    """A file of a pruned model, damaged at one seeded place after the other, each read anew in one child."""

    def case(world: World, chance: Random) -> str:
        folder = world.case() / "out"
        shutil.copytree(world.undisturbed["prune"] / "out", folder)
        work = partial(_read_damaged, folder, name, kind, chance.random())
        code = children.fork(work, world.log).wait()
        world.require(code == 0, f"{name}, {kind}")
        shutil.rmtree(folder.parent)
        return world.log.read_text().strip().splitlines()[-1]

    return case


def damaged_journal(kind: str) -> Case:
    """A journal of a search that was killed; the same command then goes on, measures again, or refuses it."""

    def case(world: World, chance: Random) -> str:
        folder = world.case()
        journal = folder / "out.search.jsonl"
        lines = (world.undisturbed["prune"] / "out" / "search.jsonl").read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[: chance.randrange(2, len(lines))]))
        whole = journal.read_bytes()
        damage(journal, whole, kind, chance)
        code = world.fork("prune", folder).wait()
        said = world.log.read_text(errors="replace")
        if code != 0:
            world.require(code == 2 and "journal" in said, f"no error of ours, but {code}")
            journal.unlink()
            world.finish("prune", folder)
            return "error; with the journal deleted, the same command ends well"
        # Where lines lay, damaged, more lines follow than in an undisturbed run.
        _same_but_for_the_journal(world, folder)
        return "same plan and weights"

    return case


def damaged_checkpoint(kind: str) -> Case:
    """The last checkpoint of a fit that was killed."""

    def case(world: World, chance: Random) -> str:
        folder = world.case()
        kept = folder / "kept"
        shutil.copytree(world.undisturbed["fit"] / "kept", kept)
        last = kept / f"epoch={chance.randrange(3)}.ckpt"
        for path in kept.glob("*.ckpt"):
            if path.stem > last.stem:
                path.unlink()
        damage(last, last.read_bytes(), kind, chance)
        code = world.fork("fit", folder).wait()
        said = world.log.read_text(errors="replace")
        world.require(code == 0, f"ended with {code}")
        world.require_same("fit", folder)
        shutil.rmtree(folder)
        passed = "damaged" in said
        return "refused; from the one before, the same weights" if passed else "read: the same weights"

    return case


def damage(path: Path, whole: bytes, kind: str, chance: Random) -> None:
    """Cut a file, or flip a bit."""
    place = chance.randrange(len(whole))
    content = bytearray(whole)
    if kind == "cut":
        content = content[:place]
    else:
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _same_but_for_the_journal(world: World, folder: Path) -> None:
    expected = world.undisturbed["prune"] / "out" / "search.jsonl"
    shutil.copyfile(expected, folder / "out" / "search.jsonl")
    world.finish("prune", folder)


def _read_damaged(folder: Path, name: str, kind: str, seed: float) -> int:
    import torch

    from lit_prune import PrunePlan, load
    from lit_prune.errors import LitPruneError

    chance, path = Random(seed), folder / name
    whole = path.read_bytes()
    plan, model = PrunePlan.load(folder), load(folder)
    # The model may be mapped from the file.
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refused = 0
    for _ in range(PLACES):
        damage(path, whole, kind, chance)
        try:
            if name == "prune_plan.json":
                assert PrunePlan.load(folder) == plan
            else:
                found = load(folder)
                assert found.config.to_dict() == model.config.to_dict()
                assert found.state_dict().keys() == weights.keys()
                assert all(torch.equal(tensor, weights[key]) for key, tensor in found.state_dict().items())
        except LitPruneError:
            refused += 1
    print(f"\n{PLACES} places each: " + ("all errors" if refused == PLACES else "errors, or exactly the same"))
    return 0
