"""A file of lines that one process at a time reads and appends to, and that survives its death at any moment."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from lit_prune.errors import MeasureError
from lit_prune.files import open_alone


class JournalFile:
    """A file that is held until `close`, or the process's death.

    Args:
        path: The file, which is made where it does not exist, with its folder.

    Attributes:
        lines: The whole lines that were there, without their ends.
        torn: The beginning of a last line whose writer died.

    Raises:
        MeasureError: Another process holds the file, or it cannot be read and written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open()
            self.close = weakref.finalize(self, os.close, self._descriptor)
            *self.lines, self.torn = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise MeasureError(f"cannot use the journal {path}: {error.strerror}") from error

    def cut(self) -> None:
        """Take the torn line off the file."""
        os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - len(self.torn))

    def append(self, line: str) -> None:
        """Add a line.

        Raises:
            MeasureError: The line cannot be written; what was before stays.
        """
        data = f"{line}\n".encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise MeasureError(
                f"cannot write the journal {self.path}: {error.strerror}. What was measured before is kept; the same "
                "command goes on from there"
            ) from error

    def _open(self) -> int:
        try:
            return open_alone(self.path)
        except BlockingIOError as error:
            raise MeasureError(
                f"another process is searching with the journal {self.path}: wait for it, or name another output"
            ) from error
