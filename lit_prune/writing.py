"""Files that are whole or absent, and JSON with infinities."""

from __future__ import annotations

import glob
import math
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]


def to_json(value: Any) -> Any:
    """JSON has no infinity; it is written as the text that `float` reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: to_json(each) for name, each in value.items()}
    return [to_json(each) for each in value] if isinstance(value, list | tuple) else value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, dict):
        return {name: from_json(each) for name, each in value.items()}
    return [from_json(each) for each in value] if isinstance(value, list) else value


def file_name(name: str) -> str:
    """A name without what a file's name cannot hold; never one that means a folder, or is hidden.

    Example:
        >>> file_name("org/model:2"), file_name("../x")
        ('org-model-2', '-.-x')
    """
    plain = "".join(each if each.isalnum() or each in "-_." else "-" for each in name)
    return f"-{plain[1:]}" if plain.startswith(".") else plain


def name_aside(path: Path) -> Path:
    """A name beside `path` that nobody else writes to; what processes left there that were killed is removed."""
    start = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(start)}*.part"):
        process = left.name.removeprefix(start).removesuffix(".part")
        # A process of this number is this one, or dead: in containers, the number is often the same again.
        if process.isdecimal() and (int(process) == os.getpid() or not _is_alive(int(process))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}.part")


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere, asking ends it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def open_alone(path: Path) -> int:
    """Open a file to read and append for this process alone, until it is closed; it is made where it does not exist.

    Returns:
        The descriptor.

    Raises:
        BlockingIOError: Another process has it open so.
        OSError: It cannot be opened or locked.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have moved it away meanwhile.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Keep a path, which is written later, from other processes that ask so, in a `with` block or until death.

    Raises:
        BlockingIOError: Another process has it.
        OSError: The file that stands for it cannot be made beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sign = path.with_name(f".{path.name}.lock")
    descriptor = open_alone(sign)
    try:
        yield
    finally:
        if os.name == "posix":  # elsewhere, an open file cannot be removed
            sign.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when the `with` block ends well and is gone when it does not.

    Raises:
        OSError: Something is in the way, an empty folder apart.
    """
    aside = name_aside(path)
    try:
        aside.mkdir(parents=True)
        yield aside
        if path.exists():
            path.rmdir()  # fails where somebody has filled it meanwhile
        put_in_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put_in_place(aside: Path, path: Path) -> None:
    """Give what was written aside its name, once the disk has it: whole or absent after a power failure too."""
    for each in (*aside.rglob("*"), aside):
        _flush(each)
    os.replace(aside, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    if os.name != "posix":
        return  # elsewhere, what was opened to be read cannot be flushed
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems flush files alone
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file aside and rename it into place; parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = name_aside(path)
    try:
        aside.write_text(text, encoding="utf-8")
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path
