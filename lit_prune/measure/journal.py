"""Every measurement, as it was made: kept in memory, and in a file so that a search that was killed goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_prune.errors import MeasureError, PlanError
from lit_prune.placement import values_of
from lit_prune.plan import SublayerId
from lit_prune.reading import require_kinds
from lit_prune.writing import write_text

FORMAT = 1
KINDS_OF_A_LINE = {"without": tuple[str, ...], "batch": int | str, "nll": tuple[float, ...], "blocks": int}

Key = tuple[frozenset[SublayerId], int | str]
"""What is out of the model, and the batch; of a measure beside the first, with that one's name before it."""


def batch_of(key: Key) -> int:
    """The number of the batch.

    Example:
        >>> batch_of((frozenset(), "kl/3"))
        3
    """
    return int(str(key[1]).rpartition("/")[2])


class Journal:
    """Losses by what was out of the model and by batch; append-only, one line of JSON for each in the file.

    Started again with the same header, a search finds everything that it had measured, decides the same, and measures
    the rest. What was being written when the process died is measured again.

    Args:
        path: The file, made where it does not exist; None keeps the measurements in memory alone.
        header: What they are valid for, in plain types: model, data, settings.

    Raises:
        MeasureError: The file is of a search with another header, or is none of ours.
    """

    def __init__(self, path: str | Path | None = None, header: Mapping[str, Any] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[Key, tuple[list[float], int]] = {}
        if self.path is not None:
            text = json.dumps({"lit_prune_journal": FORMAT, **(header or {})}, sort_keys=True)
            self._read(self.path, json.loads(text))
            self._begin(self.path, text)
        self._earlier = set(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def __getitem__(self, key: Key) -> list[float]:
        """The loss sums of the batch's sequences, in nats."""
        return self._known[key][0]

    def credit(self, key: Key) -> int:
        """Decoder blocks that an earlier process evaluated for a measurement; 0 from the second time on."""
        if key not in self._earlier:
            return 0
        self._earlier.remove(key)
        return self._known[key][1]

    def put(self, key: Key, nll: list[float], num_blocks: int) -> None:
        """Keep a measurement, and write it down before anything else happens."""
        self._known[key] = (nll, num_blocks)
        if self.path is not None:
            without, batch = key
            names = [str(each) for each in sorted(without)]
            line = {"without": names, "batch": batch, "nll": nll, "blocks": num_blocks}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def unshared(self) -> Journal:
        """Of several processes' journals: the same for batches that every process measures whole."""
        return self

    def forget(self) -> None:
        """Measurements of a model whose weights have changed are of no use."""
        self._known.clear()

    @staticmethod
    def header(path: str | Path | None) -> dict[str, Any]:
        """What the measurements in a file are valid for; nothing where it is not there, or is no journal."""
        try:
            with Path(path or os.devnull).open(encoding="utf-8") as file:
                found = _parsed(file.readline())
        except (OSError, UnicodeDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def _read(self, path: Path, header: Mapping[str, Any]) -> None:
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if not lines or not lines[0].endswith("\n"):
            return  # killed while the first line was written
        found = _parsed(lines[0])
        if not isinstance(found, dict) or found.get("lit_prune_journal") != FORMAT:
            raise MeasureError(f"{path} is no journal of a search; name another file")
        differing = [
            f"{name} {found.get(name)!r} there, {header.get(name)!r} here"
            for name in sorted({*found, *header})
            if found.get(name) != header.get(name)
        ]
        if differing:
            raise MeasureError(
                f"{path} is the journal of another search: {'; '.join(differing)}. Start with the same settings to go "
                "on with it, or delete it to begin anew"
            )
        self._known.update(each for each in map(_measurement, lines[1:]) if each is not None)

    def _begin(self, path: Path, header: str) -> None:
        """Make the file what was understood of it, aside and renamed."""
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        write_text(path, "".join(whole or [header + "\n"]))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _measurement(line: str) -> tuple[Key, tuple[list[float], int]] | None:
    """What a line says; nothing where it is cut off or damaged: that is measured again."""
    try:
        data: Any = _parsed(line) if line.endswith("\n") else None
        require_kinds("a line", data, KINDS_OF_A_LINE)
        return (frozenset(map(SublayerId.parse, data["without"])), data["batch"]), (data["nll"], data["blocks"])
    except (TypeError, PlanError):
        return None


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of every parameter's name, shape, dtype and first 1,024 numbers; training moves almost all of them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        first = values_of(model, name, parameter).flatten()[:1024].contiguous().cpu()
        digest.update(bytes(first.view(torch.uint8).tolist()))
    return digest.hexdigest()[:16]
