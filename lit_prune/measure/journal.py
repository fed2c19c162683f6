"""Every measurement, as it was made: kept in memory, and in a file so that a search that was killed goes on."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from lit_prune.errors import MeasureError, PlanError
from lit_prune.files import require_kinds
from lit_prune.measure.journal_file import JournalFile
from lit_prune.plan import SublayerId

FORMAT = 2
"""Format 1 had no checksums; it is read, and goes on with them."""
KINDS_OF_A_LINE = {"without": tuple[str, ...], "batch": int | str, "nll": tuple[float, ...], "blocks": int}

Key = tuple[frozenset[SublayerId], int | str]
"""What is out of the model, and the batch: its number, behind the name of a measure that is not the first."""


def batch_of(key: Key) -> int:
    """The number of a key's batch.

    Example:
        >>> batch_of((frozenset(), "kl/3"))
        3
    """
    return int(str(key[1]).rpartition("/")[2])


class Journal:
    """Losses by what was out of the model and by batch; append-only, one line of JSON for each in the file.

    Started again with the same header, a search finds everything that it had measured, decides the same, and measures
    the rest. What was being written when the process died, and lines that do not fit their checksum, are measured
    again. While a search runs, no other one can use the file.

    Args:
        path: The file, made where it does not exist; None keeps the measurements in memory alone.
        header: What the measurements are valid for, in plain types: model, data, settings.

    Raises:
        MeasureError: The file is of a search with another header, is none of ours, is in use, or cannot be written.
    """

    def __init__(self, path: str | Path | None = None, header: Mapping[str, Any] | None = None) -> None:
        self._known: dict[Key, tuple[list[float], int]] = {}
        plain = json.loads(json.dumps({"lit_prune_journal": FORMAT, **(header or {})}, sort_keys=True))
        self._file = None if path is None else JournalFile(path)
        if self._file is not None:
            try:
                self._read(self._file, plain)
            except BaseException:
                self.close()
                raise
        self._earlier = set(self._known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other searches use the file; what is measured from here on is kept in memory alone."""
        if self._file is not None:
            self._file.close()
            self._file = None

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
        if self._file is not None:
            without, batch = key
            names = [str(sublayer) for sublayer in sorted(without)]
            self._file.append(_checked({"without": names, "batch": batch, "nll": nll, "blocks": num_blocks}))

    def unshared(self) -> Journal:
        """The journal for batches that every process measures whole; see `SharedJournal`."""
        return self

    @staticmethod
    def header(path: str | Path | None) -> dict[str, Any]:
        """What the measurements in a file are valid for; empty where it is not there, or is no journal."""
        try:
            with Path(path or os.devnull).open("rb") as file:
                line = file.readline().removesuffix(b"\n")
        except OSError:
            return {}
        found = _parsed(line)
        return found if _is_header(found) and _is_intact(found, line, found["lit_prune_journal"]) else {}

    def _read(self, file: JournalFile, header: Mapping[str, Any]) -> None:
        text = _checked(header)
        if not file.lines and text.encode().startswith(file.torn):
            file.cut()
            file.append(text)
            return
        first = file.lines[0] if file.lines else b""
        _require_header(file.path, first, header)
        file.cut()
        damaged = 0
        for line in file.lines[1:]:
            try:
                data = _parsed(line)
                if not _is_intact(data, line, _parsed(first)["lit_prune_journal"]):
                    raise ValueError
                require_kinds("a line", data, KINDS_OF_A_LINE)
                without = frozenset(SublayerId.parse(name) for name in data["without"])
                self._known[without, data["batch"]] = (data["nll"], data["blocks"])
            except (ValueError, TypeError, KeyError, PlanError):
                damaged += 1
        if damaged:
            warnings.warn(f"{damaged} lines of {file.path} are damaged; they are measured again", stacklevel=2)


def _require_header(path: Path, line: bytes, header: Mapping[str, Any]) -> None:
    """Refuse the file of another search, another file, and a damaged one."""
    found = _parsed(line)
    if not _is_header(found):
        raise MeasureError(f"{path} is no journal of a search; name another file")
    names = sorted({*found, *header} - {"lit_prune_journal", "crc32"})
    other = [name for name in names if found.get(name) != header.get(name)]
    if differing := [f"{name} {found.get(name)!r} there, {header.get(name)!r} here" for name in other]:
        raise MeasureError(
            f"{path} is the journal of another search: {'; '.join(differing)}. Start with the same settings to go on "
            "with it, or delete it to begin anew"
        )
    if not _is_intact(found, line, found["lit_prune_journal"]):
        raise MeasureError(f"the first line of the journal {path} is damaged; delete the file to begin anew")


def _is_header(found: Any) -> bool:
    return isinstance(found, dict) and found.get("lit_prune_journal") in (1, FORMAT)


def _is_intact(data: Any, line: bytes, format: int) -> bool:
    """Whether a line fits its checksum, which those of format 1 do not have."""
    return isinstance(data, dict) and (format == 1 or _checked(data).encode() == line)


def _checked(data: Mapping[str, Any]) -> str:
    """A line of JSON that ends with a checksum of what is before it."""
    text = json.dumps({name: value for name, value in data.items() if name != "crc32"})
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}'


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
