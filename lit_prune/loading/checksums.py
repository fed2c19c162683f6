"""Checksums of a model's files beside them: a flipped bit in a weight cannot be seen in any other way.

The file is what `sha256sum` writes and `sha256sum -c` reads.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lit_prune.errors import ModelError

SUMS_FILE = "weights.sha256"
SUMMED = ("*.safetensors", "*.safetensors.index.json", "config.json")
"""What makes the model what it is; tokenizer, plan and card may be edited."""
LAST_FILE = "meta.pt"
"""What Lightning writes last into the folder of a distributed checkpoint: all but weights and optimizers' states."""


def write_sums(folder: Path) -> None:
    """Record the checksums of weights and config."""
    found = _sums(sorted({path for pattern in SUMMED for path in folder.glob(pattern)}))
    lines = [f"{digest}  {path.name}\n" for path, digest in found.items()]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def require_intact(folder: Path) -> None:
    """Compare weights and config in a folder with the checksums beside them; a ModelError names files that differ."""
    path = folder / SUMS_FILE
    if not path.is_file():
        return
    try:
        lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        expected = {folder / Path(name).name: digest for digest, name in lines}
        found = _sums(expected)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} or what it names cannot be read: {error}. {_ADVICE}") from error
    wrong = [file.name for file, digest in expected.items() if found[file] != digest]
    if wrong:
        raise ModelError(f"in {folder}, {', '.join(wrong)} is not what lit-prune wrote, by {SUMS_FILE}. {_ADVICE}")


_ADVICE = (
    "It is damaged: take it from a backup, or make it again. If it was changed on purpose, or another tool has trained "
    f"the model and copied this file beside what came of it, delete {SUMS_FILE} and it is loaded as it is"
)


def require_intact_checkpoint(path: str | os.PathLike[str] | None) -> None:
    """Compare a checkpoint with the checksums that torch writes into it, and does not read.

    It is a file of `torch.save`, or a distributed checkpoint's folder, of which `LAST_FILE` is compared. None, and what
    is neither or not on this machine, is left to whoever loads it. A ModelError says that the content has changed, or
    was not written to its end.
    """
    if path is not None and os.path.isdir(path):
        folder, path = path, os.path.join(path, LAST_FILE)
        if not os.path.isfile(path):
            raise ModelError(f"the checkpoint {folder} was not written to its end (no {LAST_FILE}); take another one")
    if path is None or not os.path.isfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(f"the checkpoint {path} is damaged ({error}); take another one") from error
    if damaged is not None:
        raise ModelError(f"the checkpoint {path} is damaged (in {damaged}); take another one")


def _sums(paths: Iterable[Path]) -> dict[Path, str]:
    paths = list(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(_sum, paths), strict=True))


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
