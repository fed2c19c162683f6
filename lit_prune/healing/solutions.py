"""Solutions of a refit, kept in a folder as they are found: one that was stopped goes on, with the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_prune.files import file_aside, to_json, write_json
from lit_prune.loading.processes import Processes

HEADER = "refit.json"
Found = tuple[dict[str, Any], dict[str, Tensor]]
"""What the plan says of the fits of one site, and their solutions where something is changed, by the fits' names."""


class Solutions:
    """A folder of solutions, by site; without a folder nothing is kept.

    Args:
        folder: The folder, which process 0 reads and writes. What is in it of another model, plan or text is removed.
        header: What the solutions are valid for, in plain types.
        processes: The processes that fit together.
    """

    def __init__(
        self, folder: Path | None = None, header: Mapping[str, Any] | None = None, processes: Processes | None = None
    ) -> None:
        self._folder, self._processes = folder, processes or Processes()
        if folder is not None and self._processes.is_first:
            path, wanted = folder / HEADER, to_json(dict(header or {}))
            if not path.exists() or json.loads(path.read_text(encoding="utf-8")) != wanted:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_json(path, wanted)

    def known(self, site: str) -> Found | None:
        """What was found at a site before, on every process; None where nothing was."""
        return None if self._folder is None else self._processes.first(lambda: self._read(site))

    def put(self, site: str, found: Found) -> None:
        """Keep what was found at a site."""
        if self._folder is not None and self._processes.is_first:
            facts, tensors = found
            with file_aside(self._path(site)) as path:
                save_file(
                    {name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"facts": json.dumps(facts)}
                )

    def clear(self) -> None:
        """Remove the folder."""
        if self._folder is not None and self._processes.is_first:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, site: str) -> Found | None:
        if not (path := self._path(site)).exists():
            return None
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["facts"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def _path(self, site: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{site}.safetensors"
