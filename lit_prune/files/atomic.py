"""Files and folders that are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def file_name(name: str) -> str:
    """Put a name into the letters that a file's name can hold; it never means a folder, or is hidden.

    Example:
        >>> file_name("org/model:2"), file_name("../x")
        ('org-model-2', '-.-x')
    """
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return f"-{plain[1:]}" if plain.startswith(".") else plain


LONGEST = 255
"""The most bytes in a name, on nearly all file systems."""
LONGEST_ENDING = len(".prune_plan.json")
"""The most bytes that the name of what is written beside a folder is longer than the folder's."""


class NotPlacedError(OSError):
    """What was written could not get its name; it is kept beside it, and the message says where."""


def destination(path: str | Path) -> Path:
    """The path at which something of this name is written: where a link leads to, which need not be there yet."""
    found = Path(path).expanduser()
    return Path(os.path.realpath(found)) if os.path.islink(found) or found.name in ("", "..") else found


def obstacle(path: Path, *, inside: bool = False) -> str | None:
    """Find out, before long work, why nothing can be written at a `destination`, in words; None where it can.

    Args:
        path: The name of a file or a new folder.
        inside: Whether it is a folder that may be there already, into which files are written.
    """
    longest = LONGEST - LONGEST_ENDING
    if len(os.fsencode(path.name)) > longest or any(len(os.fsencode(part)) > LONGEST for part in path.parts):
        return f"a name of more than {longest} bytes leaves no room for what is written beside it"
    if path.is_symlink():
        return "it is a link that leads to itself"
    if inside and path.exists() and not path.is_dir():
        return "it is no folder"
    if not inside and os.path.ismount(path):
        return f"it is a mount point, onto which nothing can be renamed; name something inside, like {path / 'model'}"
    parents = ((path / "_") if inside else path).absolute().parents
    nearest = next(parent for parent in parents if os.path.lexists(parent))
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"permission denied to write in {nearest}"


def name_aside(path: Path) -> Path:
    """Find a name beside `path` that nobody else writes to, and remove what killed processes left."""
    import psutil  # `--help` need not wait for it

    start = _hidden(f"{path.name}.{socket.gethostname()}")
    for left in path.parent.glob(f"{glob.escape(start)}*.part"):
        process = left.name.removeprefix(start).removesuffix(".part")
        # A process of this number is this one, or dead: in containers, the number is often the same again.
        if process.isdecimal() and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}.part")


def _hidden(name: str) -> str:
    """The beginning of a hidden file's name: this one, or its hash where that leaves no room for an ending."""
    start = f".{name}."
    too_long = len(os.fsencode(start)) > LONGEST - len("4194304.part")
    return f".{hashlib.sha256(os.fsencode(start)).hexdigest()}." if too_long else start


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Keep a path for this process, while a `with` block or at most the process lasts.

    Raises:
        filelock.Timeout: Another process has reserved the path.
        OSError: The file that stands for the reservation cannot be made beside the path.
    """
    from filelock import FileLock  # `--help` need not wait for it

    path = destination(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sign = path.with_name(f"{_hidden(path.name)}lock")
    # A file system without locks is an error: what stands in for them lets two in, in some versions.
    with FileLock(sign, timeout=0, thread_local=False, fallback_to_soft=False) as lock:
        try:
            yield
        finally:
            # While it is held, so that it is nobody else's; a forked process holds nothing. Windows' lock removes it.
            if os.name == "posix" and lock.is_locked:
                sign.unlink(missing_ok=True)


@contextmanager
def file_aside(path: str | Path) -> Iterator[Path]:
    """Give a name to write a file under, which gets its own as a folder in `folder_aside` does."""
    path = destination(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = name_aside(path)
    try:
        yield aside
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Give a folder to write into, which gets its name when the `with` block ends well and is gone when it does not.

    Args:
        path: The name that the folder gets; a link stands for what it leads to.

    Raises:
        NotPlacedError: Something other than an empty folder has the name; what was written is kept beside it.
        OSError: The folder cannot be written.
    """
    path = destination(path)
    aside = name_aside(path)
    try:
        aside.mkdir(parents=True)
        yield aside
        put_in_place(aside, path)
    except NotPlacedError:
        raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def put_in_place(aside: Path, path: Path) -> None:
    """Give what was written aside its name, once the disk has it: whole or absent after a power failure too."""
    for written in (*aside.rglob("*"), aside):
        _flush(written)
    try:
        if path.is_dir() and aside.is_dir():
            path.rmdir()  # fails where somebody has filled it meanwhile
        os.replace(aside, path)
    except OSError as error:
        kept = aside
        with suppress(OSError):  # a name under which nothing removes it
            kept = aside.rename(beside(path))
        raise NotPlacedError(error.errno, f"{error.strerror}; what was written is kept as {kept}") from error
    _flush(path.parent)


def beside(path: Path) -> Path:
    """Find a name after this one that nothing has."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


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
    """Write a text file aside and rename it into place, through links; parent folders are made."""
    if (path := Path(path)).exists() and not (path.is_file() or path.is_dir()):
        path.write_text(text, encoding="utf-8")  # a pipe, a terminal, /dev/null
        return path
    with file_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return destination(path)
