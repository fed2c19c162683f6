"""A file of lines that one process at a time reads and appends to, and that survives its death at any moment."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from lit_prune.errors import MeasureError
from lit_prune.files import open_alone


class JournalFile:
    """A file that is held until `close`, or the process's death; it is made where it does not exist, with its folder.

    Attributes:
        lines: The whole lines that were there, without their ends.
        torn: The beginning of a last line whose writer died.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = open_alone(self.path)
            self.close = weakref.finalize(self, os.close, self._descriptor)
            *self.lines, self.torn = self.path.read_bytes().split(b"\n")
        except BlockingIOError as error:
            raise MeasureError(
                f"another process is searching with the journal {self.path}: wait for it, or name another output"
            ) from error
        except OSError as error:
            raise MeasureError(f"cannot use the journal {path}: {error.strerror}") from error

    def cut(self) -> None:
        """Take the torn line off the file."""
        os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - len(self.torn))

    def append(self, line: str) -> None:
        """Add a line; where it cannot be written, what was before stays."""
        data = f"{line}\n".encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise MeasureError(
                f"cannot write the journal {self.path}: {error.strerror}. What was measured before is kept; the same "
                "command goes on from there"
            ) from error
