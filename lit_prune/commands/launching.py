"""Several processes of one command: started by it (`--devices`), by `fabric run` or by torchrun."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_prune.commands.arguments import default_device
from lit_prune.data import require_positive
from lit_prune.errors import LitPruneError


def start(
    devices: int | None, device: str | None, device_map: str | Mapping[str, Any] | None = None
) -> tuple[Fabric | None, str | None]:
    """Start as many processes as `devices`, or join those that a launcher has started.

    Several take the devices of one type in turn. Returns Lightning's Fabric (None for one process alone), and this
    process's device (None where a map spreads the model over several).

    Raises:
        LitPruneError: Processes cannot be started with these settings.
    """
    chosen = default_device(device)
    launched = launcher(os.environ)
    if device_map is not None:
        if launched or device is not None or devices not in (None, 1):
            raise LitPruneError(
                "device_map spreads one model over the devices of one process; leave out device, devices and launchers"
            )
        return None, None
    require_positive(devices=devices)
    if not launched and devices in (None, 1):
        return None, chosen
    if device is not None and ":" in device:
        raise LitPruneError(f"several processes take devices of their own, not all {device}; leave the number out")
    if "LT_PRECISION" in os.environ:
        raise LitPruneError("--precision is for training; give lit-prune prune --dtype")
    elsewhere = device is None and "LT_ACCELERATOR" in os.environ
    fabric = None
    try:
        fabric = Fabric(
            accelerator="auto" if elsewhere else chosen,
            devices=launched.get("devices", "auto") if devices is None else devices,
            num_nodes=launched.get("num_nodes", 1),
        )
        environment = getattr(fabric.strategy, "cluster_environment", None)
        starts_others = isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally
        if starts_others and "MASTER_PORT" not in os.environ:
            # Lightning's own choice may be taken before it is used; a cluster's is the same in all processes.
            os.environ["MASTER_PORT"] = str(reserved_port())
        if os.environ.get("LT_CLI_USED") != "1":  # else it is launched
            fabric.launch()
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        for process in getattr(fabric and fabric.strategy.launcher, "procs", []):
            process.kill()  # it would wait half an hour for this one
        raise LitPruneError(f"these processes cannot be started: {error}") from error
    torch.set_num_threads(fair_threads(os.environ, torch.get_num_threads()))
    return fabric, str(fabric.device)


def reserved_port() -> int:
    """A port of this machine that a server can take within the next minute, and that no connection is given.

    A connection that has just been closed keeps its port from all but those who ask for it by number.
    """
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        with socket.create_connection(server.getsockname()):
            server.accept()[0].close()
        return int(server.getsockname()[1])


def require_shared(fabric: Fabric | None, *, shard: bool) -> None:
    """Refuse to shard a model over one process."""
    if shard and (fabric is None or fabric.world_size == 1):
        raise LitPruneError(
            "a model is sharded over several processes; give devices, or start them with `fabric run` or torchrun"
        )


def part() -> None:
    """Part from the other processes, once all are done.

    Lightning leaves gloo's threads running, and a process that exits while they do is sometimes aborted by them.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def launcher(environment: Mapping[str, str]) -> dict[str, int]:
    """How many processes torchrun has started, for Fabric, which would take each for one alone; `fabric run` uses it.

    Example:
        >>> launcher({"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"})
        {'devices': 2, 'num_nodes': 3}
        >>> launcher({})
        {}
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return {}
    here, everywhere = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
    return {"devices": here, "num_nodes": everywhere // here}


def fair_threads(environment: Mapping[str, str], num_threads: int) -> int:
    """A process's share of the CPU threads: `fabric run` gives all of them to each, and they wait for one another.

    Example:
        >>> fair_threads({"LT_CLI_USED": "1", "LOCAL_WORLD_SIZE": "2"}, 8)
        4
    """
    crowded = environment.get("LT_CLI_USED") == "1"
    return max(1, num_threads // int(environment.get("LOCAL_WORLD_SIZE", "1"))) if crowded else num_threads
