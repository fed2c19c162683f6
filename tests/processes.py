"""Several processes of one test, forked, as torchrun would start them: Lightning finds its way by their environment."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_prune.commands.launching import reserved_port


def in_torchrun(folder: Path, number: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returned in each of several processes, by rank and through JSON.

    Raises:
        AssertionError: One of them failed: with its traceback, also where a library ended the process by a signal.
    """
    port = reserved_port()
    for each in folder.glob("rank*.json"):
        each.unlink()
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=_run, args=(folder, rank, number, port, work)) for rank in range(number)]
    # No process may finalise what it inherits: threads that this belongs to are not there.
    gc.freeze()
    try:
        for each in processes:
            each.start()
    finally:
        gc.unfreeze()
    for each in processes:
        each.join(timeout=120)
    if any(each.is_alive() for each in processes):
        for each in processes:
            each.kill()
        raise AssertionError("the processes wait for one another")
    for rank, each in enumerate(processes):
        assert each.exitcode == 0, f"process {rank}: {each.exitcode}\n{_stack_file(folder, rank).read_text()}"
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(number)]
    errors = [each["error"] for each in found if "error" in each]
    assert not errors, errors[0]
    return [each["found"] for each in found]


def _run(folder: Path, rank: int, number: int, port: int, work: Callable[[], Any]) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "GROUP_RANK": 0}
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**world, **there}.items()})
    torch.set_num_threads(1)
    # Kept open: the stack of a crash goes there.
    stack = _stack_file(folder, rank).open("w")
    faulthandler.enable(stack)
    try:
        found = json.dumps({"found": work()})
    except BaseException:
        found = json.dumps({"error": traceback.format_exc()})
    (folder / f"rank{rank}.json").write_text(found)
    # No clean-up of what was inherited, and gloo's threads need not end.
    os._exit(0)


def _stack_file(folder: Path, rank: int) -> Path:
    return folder / f"stack{rank}.txt"
