"""Documents drawn from files that hold far more than is wanted: memory and time follow what is wanted."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_prune.errors import DataError
from lit_prune.files.dialogues import Document
from lit_prune.files.schemas import foreign_json
from lit_prune.files.text_files import COLUMNS, LINES, PLAIN, document_of, kind_of, opened_columns, packed_lines

LARGE = 64_000_000
"""Bytes up to which files are read whole."""
PLENTY = 8
"""How many times as many bytes as characters are wanted must be there, so that draws are of different places."""
STRETCH = 1 << 16
"""Bytes of a plain text that are drawn at a time."""
PARTS = 8
"""In how many turns a row group of a Parquet file is drawn."""


def are_large(files: Sequence[Path], enough: int) -> bool:
    """Whether files hold so much that documents of `enough` characters are better drawn than all read."""
    sizes = [file.stat().st_size for file in files if file.exists()]
    return sum(sizes) > max(LARGE, PLENTY * enough) and all(kind_of(file) in (PLAIN, LINES, COLUMNS) for file in files)


def draw_documents(files: Sequence[Path], field: str, *, enough: int, seed: int) -> list[Document]:
    """Draw documents from all over some files, each by its size, until they have `enough` characters.

    Lines and stretches of plain text begin at bytes that are drawn, Parquet's row groups come in a drawn order. What is
    packed can be read from its beginning alone: some are drawn of the first that have eight times as many characters.

    Args:
        files: Files that `are_large`.
        field: Key of the text in rows, as for `read_documents`.
        enough: Characters that are wanted; there are fewer where half of the bytes do not hold so many.
        seed: Decides what is drawn.

    Raises:
        DataError: As for `read_documents`.
    """
    draw, sizes = random.Random(seed), [file.stat().st_size for file in files]
    found: list[Document] = []
    for file, size in zip(files, sizes, strict=True):
        own, wanted = 0, enough * size / sum(sizes)
        for place, row in _rows(file, size, field, wanted, draw):
            document = document_of(row, field, place)
            found.append(document)
            own += len(document)
            if own >= wanted:
                break
    return found


def _rows(file: Path, size: int, field: str, wanted: float, draw: random.Random) -> Iterator[tuple[str, Any]]:
    if kind_of(file) == COLUMNS:
        return _of_row_groups(file, field, draw)
    if not file.name.endswith((PLAIN, LINES)):
        return _of_the_beginning(file, field, wanted, draw)
    return _stretches(file, size, draw) if kind_of(file) == PLAIN else _lines(file, size, draw)


def _lines(file: Path, size: int, draw: random.Random) -> Iterator[tuple[str, Any]]:
    """The lines behind bytes that are drawn, until half of the file was read."""
    seen: set[int] = set()
    num_read = 0
    with file.open("rb") as stream:
        while num_read < size / 2:
            stream.seek(draw.randrange(size))
            num_read += len(stream.readline())  # what is left of a line
            start = stream.tell() if stream.tell() < size else stream.seek(0)
            line = stream.readline()
            num_read += len(line)
            if start not in seen and line.strip():
                seen.add(start)
                place = f"{file}, byte {start}"
                yield place, foreign_json(_decoded(line, place), place)


def _stretches(file: Path, size: int, draw: random.Random) -> Iterator[tuple[str, Any]]:
    """The lines that begin in stretches that are drawn."""
    with file.open("rb") as stream:
        for number in draw.sample(range(-(-size // STRETCH)), -(-size // STRETCH)):
            start, lines = number * STRETCH, []
            stream.seek(max(0, start - 1))
            rest = stream.readline() if start else b""  # of the line in front of the first that begins here
            while stream.tell() < start + STRETCH and (line := stream.readline()):
                lines.append(line)
            content = b"".join(lines)
            if content.strip():
                place = f"{file}, byte {start + max(0, len(rest) - 1)}"
                yield place, _decoded(content, place)


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: no UTF-8 ({error.reason}); convert the file, such as by iconv") from error


def _of_the_beginning(file: Path, field: str, wanted: float, draw: random.Random) -> Iterator[tuple[str, Any]]:
    """Rows of a packed file, or lines of a packed plain text, drawn from those at its beginning."""
    rows: list[tuple[str, Any]] = []
    length = 0
    for number, line in enumerate(packed_lines(file), start=1):
        if length >= PLENTY * wanted:
            break
        if line.strip():
            place = f"{file}, line {number}"
            row = line if kind_of(file) == PLAIN else foreign_json(line, place)
            length += len(document_of(row, field, place))
            rows.append((place, row))
    draw.shuffle(rows)
    yield from rows


def _of_row_groups(file: Path, field: str, draw: random.Random) -> Iterator[tuple[str, Any]]:
    """Rows of groups that are drawn, a part of each at a time, so that they are not all neighbours."""
    with opened_columns(file) as columns:
        wanted = [field] if field in columns.schema_arrow.names else None
        order = draw.sample(range(columns.num_row_groups), columns.num_row_groups)
        seed = draw.getrandbits(64)
        for part in range(PARTS):
            for group in order:
                rows = columns.read_row_group(group, columns=wanted).to_pylist()
                random.Random(seed + group).shuffle(rows)
                yield from ((f"{file}, row group {group}", row) for row in rows[part::PARTS])
