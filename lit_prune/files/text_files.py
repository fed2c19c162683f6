"""Files of text as people have them: plain, JSON of several forms, Parquet, packed. Knows no tokens and no models."""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lit_prune.errors import DataError
from lit_prune.files.dialogues import Document, dialogue_of
from lit_prune.files.schemas import foreign_json, whole_characters

PACKED = (".gz", ".zst")
PLAIN, LINES, WHOLE, COLUMNS = ".txt", ".jsonl", ".json", ".parquet"
SUFFIXES = (PLAIN, LINES, WHOLE, COLUMNS, *(f"{plain}{packed}" for plain in (PLAIN, LINES, WHOLE) for packed in PACKED))
"""The endings of files that are read."""
EXPECTED = ".txt or .jsonl file (or .json, .parquet, or one of them with .gz or .zst)"


def kind_of(path: str | Path) -> str | None:
    """Find the ending that says how a file is read, without that of its compression; None where it is no text."""
    name = str(path)
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((ending for ending in (PLAIN, LINES, WHOLE, COLUMNS) if name.endswith(ending)), None)


def read_text(path: Path) -> str:
    """Read a file's text without a byte order mark, unpacked where its name ends in .gz or .zst.

    Raises:
        DataError: There is no such file, or it is no UTF-8; the message names the line.
    """
    try:
        content = path.read_bytes()
        content = _unpacked(path, content)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"cannot read {path}: line {line} is no UTF-8 ({error.reason}); convert the file, such as by "
            "iconv --from-code=ENCODING --to-code=UTF-8"
        ) from error


def packed_lines(path: Path) -> Iterator[str]:
    """Read the lines of a file whose name ends in .gz or .zst, no more of it than is asked for.

    Raises:
        DataError: It is missing or damaged, or no UTF-8; the message names the line.
    """
    damage: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, zlib.error)
    number, unpacked = 0, gzip.open
    if path.suffix == ".zst":
        zstandard = _zstandard(path)
        damage = (*damage, zstandard.ZstdError)
        unpacked = partial(zstandard.ZstdDecompressor().stream_reader, read_across_frames=True)
    try:
        with path.open("rb") as packed, unpacked(packed) as file:
            for line in io.TextIOWrapper(file, "utf-8-sig"):
                number += 1
                yield line
    except damage as error:
        raise DataError(f"cannot read {path} behind line {number}: {error}") from error


def _unpacked(path: Path, content: bytes) -> bytes:
    if path.suffix == ".gz":
        return gzip.decompress(content)
    if path.suffix != ".zst":
        return content
    zstandard, parts = _zstandard(path), []
    while content:  # a file may be several frames
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(content))
        except zstandard.ZstdError as error:
            raise ValueError(error) from error
        if not frame.eof:
            raise ValueError("it ends within a frame")
        content = frame.unused_data
    return b"".join(parts)


def _zstandard(path: Path) -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise DataError(f"{path}: .zst files need zstandard: pip install 'lit-prune[hub]'") from error


def read_documents(path: Path, field: str) -> list[Document]:
    """Read the documents of a file: a plain text is one, any other file has one a row, as `document_of` takes it out.

    Raises:
        DataError: The file is missing, damaged, or has a row without text; the message names the line.
    """
    if kind_of(path) == PLAIN:
        return [whole_characters(read_text(path))]
    return [document_of(row, field, place) for place, row in _rows(path, field)]


def document_of(row: Any, field: str, place: str) -> Document:
    """Take the text out of a row, which is a text itself or has it under the key `field`; else a dialogue.

    Raises:
        DataError: The row has neither; the message names its place.
    """
    value = row.get(field) if isinstance(row, Mapping) else row
    if isinstance(value, str):
        return str(whole_characters(value))
    if value is None and (dialogue := dialogue_of(row, place)) is not None:
        return dialogue
    if isinstance(row, Mapping) and field in row:
        found = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(f"{place}: the field {field!r} holds {found}, no text; take the row out, or put a text there")
    found = f"the fields {', '.join(map(str, row))}" if isinstance(row, Mapping) else f"a {type(row).__name__}"
    raise DataError(
        f"{place}: expected an object with text in the field {field!r}, or with messages, a prompt and a completion, "
        f"or an instruction and an output; found {found}"
    )


def _rows(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """The rows of a file of JSON or Parquet, each with the place where it stands."""
    if kind_of(path) == COLUMNS:
        yield from _of_columns(path, field)
        return
    text = read_text(path)
    if kind_of(path) == WHOLE and (rows := _of_one_value(path, text)) is not None:
        yield from ((f"{path}, entry {number}", row) for number, row in enumerate(rows, start=1))
        return
    # Not `splitlines`: that also cuts at line separators which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", foreign_json(line, f"{path}, line {number}")


def _of_one_value(path: Path, text: str) -> list[Any] | None:
    """The rows in a JSON file that is one list, or columns of lists; None where every line is a value of its own."""
    try:
        found = foreign_json(text, str(path))
    except DataError as error:
        if "Extra data" in str(error):
            return None
        raise
    if isinstance(found, dict) and found and all(isinstance(column, list) for column in found.values()):
        return [dict(zip(found, row, strict=False)) for row in zip(*found.values(), strict=False)]
    return found if isinstance(found, list) else [found]


@contextmanager
def opened_columns(path: Path) -> Iterator[Any]:
    """Open a Parquet file as pyarrow's `ParquetFile`, in a `with` block.

    Raises:
        DataError: It is missing, or damaged, or there is no pyarrow.
    """
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(f"{path}: Parquet files need pyarrow: pip install 'lit-prune[hub]'") from error
    if not path.exists():
        raise DataError(f"there is no file {path}")
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (OSError, ValueError) as error:  # pyarrow's own are of these
        raise DataError(f"cannot read {path}: {error}") from error


def _of_columns(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    with opened_columns(path) as file:
        wanted = [field] if field in file.schema_arrow.names else None
        rows = (row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row
