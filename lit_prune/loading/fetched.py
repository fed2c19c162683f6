"""Plans by their address: fetched over https or from the Hub, no more of them than is possible, nothing of them run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

from lit_prune.errors import PlanError
from lit_prune.plan import PLAN_FILE

HUB, WEB = "hf://", "https://"
MOST_OF_PLAN = 1 << 24
"""Bytes; the plan of a hundred blocks with every score has a few million."""
AT_A_TIME = 1 << 20
SECONDS = 60.0
MISSING = 404


@contextmanager
def local_plan(name: str, beside: str, most: Callable[[], int]) -> Iterator[str]:
    """Give the place of a plan on this machine in a `with` block; what was fetched is gone behind it.

    Args:
        name: A file or a folder, which is itself; `hf://owner/name` on the Hub, perhaps with `@revision` and a path in
            it; or an https address. An address is the plan's where it ends in `.json`, else that of its folder.
        beside: A file beside the plan that is fetched too, where there is one.
        most: Gives the most bytes that this file may have.

    Raises:
        PlanError: The address is of no kind that is fetched, gives nothing, or more than may be.
    """
    if not (scheme := urlsplit(name).scheme) or "://" not in name:
        yield name
        return
    if not name.startswith((HUB, WEB)):
        raise PlanError(f"{name} is not fetched: expected a file, a folder, {WEB}… or {HUB}owner/name, not {scheme}:")
    with tempfile.TemporaryDirectory(prefix="lit-prune-") as folder:
        address = _plan_of(name)
        _fetch(address, Path(folder) / PLAN_FILE, MOST_OF_PLAN)
        _fetch_beside(_sibling(address, beside), Path(folder) / beside, most)
        yield folder


def _plan_of(name: str) -> str:
    return name if urlsplit(name).path.endswith(".json") else _in_folder(name, PLAN_FILE)


def _sibling(address: str, file: str) -> str:
    parts = urlsplit(address)
    return _in_folder(urlunsplit(parts._replace(path=parts.path.rpartition("/")[0])), file)


def _in_folder(address: str, file: str) -> str:
    parts = urlsplit(address)  # what stands behind a question mark may be who asks
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{file}"))


def _fetch_beside(address: str, path: Path, most: Callable[[], int]) -> None:
    try:
        with _opened(address) as source:
            _copy(source, path, most(), address)
    except FileNotFoundError:
        pass  # a plan that changes no weights


def _fetch(address: str, path: Path, most: int) -> None:
    try:
        with _opened(address) as source:
            _copy(source, path, most, address)
    except FileNotFoundError as error:
        raise PlanError(f"there is no plan at {address}: {error}") from error


def _copy(source: IO[bytes], path: Path, most: int, address: str) -> None:
    size = 0
    with path.open("wb") as file:
        while part := source.read(AT_A_TIME):
            size += len(part)
            if size > most:
                raise PlanError(f"{address} has more than {most:,} bytes, which nothing of this kind has; not fetched")
            file.write(part)


@contextmanager
def _opened(address: str) -> Iterator[IO[bytes]]:
    """What is at an address, to be read; a FileNotFoundError where nothing is."""
    try:
        if address.startswith(HUB):
            from huggingface_hub import HfFileSystem

            with cast(Any, HfFileSystem()).open(address, "rb") as file:
                yield file
        else:
            with urlopen(Request(address, headers={"User-Agent": "lit-prune"}), timeout=SECONDS) as answer:
                if not answer.url.startswith(WEB):
                    raise PlanError(f"{address} leads to {answer.url}, which is not encrypted; it is not fetched")
                yield answer
    except FileNotFoundError:
        raise
    except HTTPError as error:
        if error.code == MISSING:
            raise FileNotFoundError(str(error)) from error
        raise PlanError(f"cannot fetch {address}: {error}") from error
    except (OSError, ValueError) as error:
        raise PlanError(f"cannot fetch {address}: {error}") from error
