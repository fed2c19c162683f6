"""A file of lines that one process at a time reads and appends to, and that survives its death at any moment."""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from pathlib import Path

from filelock import Timeout

from lit_prune.errors import MeasureError
from lit_prune.files import reserved


class JournalFile:
    """A file that is held until `close`, or the process's death; it is made where it does not exist, with its folder.

    Attributes:
        lines: The whole lines that were there, without their ends.
        torn: The beginning of a last line whose writer died.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with ExitStack() as held:
                held.enter_context(reserved(self.path))
                self._descriptor = held.enter_context(self.path.open("ab", buffering=0)).fileno()
                *self.lines, self.torn = self.path.read_bytes().split(b"\n")
                self.close = weakref.finalize(self, held.pop_all().close)
        except Timeout as error:
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
