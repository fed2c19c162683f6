"""NaN where numbers should be: in a weight, or in what one token becomes, so that one batch has it."""

from __future__ import annotations

import shutil
from functools import partial
from random import Random

from benchmarks.campaign import children
from benchmarks.campaign.world import Case, World


def not_a_number(program: str, kind: str) -> Case:
    """A model with it is an error, and nothing is written."""

    def case(world: World, chance: Random) -> str:
        folder = world.case()
        spoiled = folder / "spoiled"
        source = world.dense if program == "prune" else world.undisturbed["prune"] / "out"
        shutil.copytree(source, spoiled)
        work = partial(_spoil, spoiled, kind, chance.random())
        world.require(children.fork(work, world.log).wait() == 0, "not spoiled")
        arguments = [
            str(spoiled) if argument == str(source) else argument for argument in getattr(world, program)(folder)
        ]
        code = children.fork(children.command(arguments), world.log).wait()
        said = world.log.read_text(errors="replace")
        world.require(code == 2 and "lit-prune: error" in said, f"no error of ours, but {code}")
        world.require("nan" in said.lower() or "finite" in said, "the error is not about NaN")
        world.require(not (folder / "out").exists(), "something has the final name")
        shutil.rmtree(folder)
        return "error"

    return case


def _spoil(folder: object, kind: str, seed: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tests.tiny import character_tokenizer

    chance, path = Random(seed), f"{folder}/model.safetensors"
    tensors = load_file(path)
    if kind == "batch":
        # A letter that not every window has.
        name = next(name for name in tensors if "embed_tokens" in name)
        tensors[name][character_tokenizer().convert_tokens_to_ids(chance.choice("qzjxv"))] = torch.nan
    else:
        # What was removed left tensors without numbers.
        name = chance.choice(sorted(name for name in tensors if "layers" in name and tensors[name].numel()))
        flat = tensors[name].view(-1)
        flat[chance.randrange(len(flat))] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    (folder / "weights.sha256").unlink(missing_ok=True)  # type: ignore[operator]
