"""Where text comes from, and how documents are shared out among training, validation and test. Knows no tokens."""

from __future__ import annotations

import importlib
import importlib.resources
import json
import math
import os
import random
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lit_prune.errors import DataError
from lit_prune.files import (
    EXPECTED,
    SUFFIXES,
    Document,
    are_large,
    document_of,
    draw_documents,
    kind_of,
    read_documents,
)
from lit_prune.files.text_files import COLUMNS, LINES, PLAIN, WHOLE
from lit_prune.loading.sources import is_path

BUILTIN, MIXED = "builtin", "mixed"
INSTALLED = (BUILTIN, MIXED)
"""Sources that are in every installation."""
SHIPPED = "public_domain.jsonl"
SHARE_OF_MIXED = 72_000
"""Characters of each kind of text in `mixed`."""
LIBRARY = ("argparse", "asyncio", "collections", "email", "http", "json", "logging", "unittest", "urllib")
"""Parts of Python's library whose source code is in `mixed`."""
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# With fewer documents than this, a share of 10 % can be missed by far; they are cut at paragraphs then.
MIN_DOCUMENTS = 20
HUB_FILES = "hf://datasets/"
"""What a source begins with that names files of a data set on the hub, as fsspec writes them."""
BUILDERS = {LINES: "json", WHOLE: "json", PLAIN: "text", COLUMNS: "parquet"}
"""What the datasets package reads files with."""
IN_DRAW = 10_000
"""Rows of a streamed data set that the next one is drawn from."""


def read_texts(
    source: str | Path,
    *,
    name: str | None = None,
    split: str | None = None,
    field: str = "text",
    enough: int | None = None,
    seed: int = 0,
) -> list[Document]:
    """Read the documents of a source.

    Args:
        source: The word `builtin` (Python's own help topics, in every installation, varying a little with its version),
            `mixed` (equal parts of novels and of essays, both in the public domain, of Python's help topics, and of the
            source code of its library), a `.txt` file (one document), a `.jsonl` file (one a line), `.json` (a list, or
            lines) or `.parquet`, any of them but the last with `.gz` or `.zst` behind it, a folder of such files, a
            data set on the hub, or files of one, such as `hf://datasets/allenai/c4/en/c4-validation.*.json.gz`.
        name: Configuration of a hub data set, such as `wikitext-2-raw-v1`; its default when None.
        split: Name of a hub data set's split; `train` when None.
        field: Key of the text in rows of files and hub data sets. Rows without it may be dialogues, in forms of
            TRL and of Alpaca: `messages`, or `prompt` and `completion`, or `instruction` and `output`.
        enough: Characters that are wanted. Of a data set on the hub no more is fetched, in a drawn order, and of files
            that hold far more it is drawn, as `draw_documents` says. Everything is read when None.
        seed: Decides what is drawn.

    Returns:
        One string a document, or one `Dialogue`, in a fixed order, U+FFFD for what is half a character. Rows come as
        they are, empty ones too.

    Raises:
        DataError: The source is missing or damaged, lacks the field, or holds nothing but blanks; with file and line.
    """
    texts: list[Document]
    if is_hub(source):
        texts = _read_hub(str(source), name, split or "train", field, enough, seed)
    elif name is not None or split is not None:
        raise DataError(
            f"{source} is no hub data set, so name={name!r} and split={split!r} mean nothing; leave them out"
        )
    elif source == BUILTIN:
        texts = [*_help_topics()]
    elif source == MIXED:
        texts = [*_mixed()]
    elif enough is not None and are_large(files := _files_of(Path(source).expanduser()), enough):
        texts = draw_documents(files, field, enough=enough, seed=seed)
    else:
        texts = [text for file in _files_of(Path(source).expanduser()) for text in read_documents(file, field)]
    if all(map(_is_blank, texts)):
        raise DataError(f"{source} holds no text")
    return texts


def read_parts(
    source: str | Path, *, name: str | None, field: str, seed: int, enough: Mapping[str, int | None]
) -> dict[str, list[Document]]:
    """Read documents for `train`, `val` and `test`: by the splits of a hub data set with all three, else shared out.

    `enough` has the characters that are wanted of each part; where it is None of one, all are read whole.
    """
    read = partial(read_texts, source, name=name, field=field, seed=seed)
    if is_hub(source) and set(HUB_SPLITS.values()) <= set(_hub_splits(str(source), name)):
        return {part: read(split=split, enough=enough[part]) for part, split in HUB_SPLITS.items()}
    wanted = [None if most is None else math.ceil(most / SHARES[part]) for part, most in enough.items()]
    return share_out(read(enough=None if None in wanted else max(filter(None, wanted))), seed=seed)


def share_out(texts: Sequence[Document], *, seed: int = 0) -> dict[str, list[Document]]:
    """Share documents out 80 : 10 : 10 by characters, in a random order that only the seed decides.

    Fewer than 20 texts are cut at paragraphs into about equal pieces first.

    Raises:
        DataError: There are fewer than three pieces.

    Example:
        >>> {part: len(texts) for part, texts in share_out(["word " * 10] * 100).items()}
        {'train': 80, 'val': 10, 'test': 10}
    """
    pieces = [text for text in texts if not _is_blank(text)]
    if len(pieces) < MIN_DOCUMENTS and (cut := [text for text in pieces if isinstance(text, str)]):
        pieces = [*_cut_at_paragraphs(cut), *(text for text in pieces if not isinstance(text, str))]
    if len(pieces) < len(SHARES):
        raise DataError(
            f"cannot share {len(pieces)} dialogues, or paragraphs of text, out to train, val and test; "
            "expected three at least, paragraphs divided by blank lines"
        )
    random.Random(seed).shuffle(pieces)
    parts: dict[str, list[Document]] = {part: [] for part in SHARES}
    sizes = dict.fromkeys(SHARES, 0)
    for piece in pieces:
        hungriest = min(SHARES, key=lambda part: sizes[part] / SHARES[part])
        parts[hungriest].append(piece)
        sizes[hungriest] += len(piece)
    return parts


def require_source(source: str | Path) -> None:
    """Refuse with a DataError, without reading it, a source that `read_texts` would not find or cannot read here."""
    path = Path(source).expanduser()
    if is_hub(source):
        _datasets(str(source))
    elif source not in INSTALLED:
        if not os.path.exists(path):
            raise DataError(f"there is no file {path}")
        _require_text(path)


def is_hub(source: str | Path) -> bool:
    """Whether the source is neither ours nor a path: then it names a data set on the hub."""
    text = str(source)
    return text.startswith(HUB_FILES) or (text not in INSTALLED and not text.endswith(SUFFIXES) and not is_path(text))


def _is_blank(document: Document) -> bool:
    return not (document.strip() if isinstance(document, str) else len(document))


def _help_topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[key] for key in sorted(topics)]


def _mixed() -> list[str]:
    """Documents of four kinds in equal parts: novels, essays, documentation, source code."""
    with importlib.resources.files("lit_prune.data").joinpath(SHIPPED).open(encoding="utf-8") as lines:
        shipped = [json.loads(line) for line in lines]
    library = Path(json.__file__).parents[1]
    modules = [path for name in LIBRARY for path in [library / f"{name}.py", *sorted((library / name).glob("*.py"))]]
    kinds = [
        [row["text"] for row in shipped if row["kind"] == "novel"],
        [row["text"] for row in shipped if row["kind"] == "essay"],
        _help_topics(),
        [path.read_text(encoding="utf-8") for path in modules if path.exists()],
    ]
    return [text for texts in kinds for text in _spread(texts, SHARE_OF_MIXED)]


def _spread(texts: Sequence[str], num_characters: int) -> list[str]:
    """Documents from all over a list that have so many characters together, the last one cut."""
    stride = max(1, sum(map(len, texts)) // num_characters)
    found: list[str] = []
    for start in range(stride):
        for text in texts[start::stride]:
            found.append(text[: num_characters - sum(map(len, found))])
    return [text for text in found if text]


def _cut_at_paragraphs(texts: Sequence[str]) -> list[str]:
    """Runs of neighbouring paragraphs of about equal length: neighbours stay in one part where they can."""
    target = sum(map(len, texts)) / MIN_DOCUMENTS
    pieces: list[str] = []
    for text in texts:
        run: list[str] = []
        length = 0
        for paragraph in filter(str.strip, re.split(r"\n\s*\n", text)):
            run.append(paragraph)
            length += len(paragraph)
            if length >= target:
                pieces.append("\n\n".join(run))
                run, length = [], 0
        pieces += ["\n\n".join(run)] if run else []
    return pieces


def _require_text(path: Path) -> None:
    if not path.is_dir() and kind_of(path) is None:
        raise DataError(f"cannot read {path}: expected a {EXPECTED}, a folder of them, or a hub data set")


def _files_of(path: Path) -> list[Path]:
    """A file of text, or those in a folder; there, JSON, which may be anything, only where nothing else is."""
    _require_text(path)
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if file.is_file() and str(file).endswith(SUFFIXES)]
    if not files:
        raise DataError(f"the folder {path} holds no {EXPECTED}")
    return [file for file in files if kind_of(file) != WHOLE] or files


def _read_hub(source: str, name: str | None, split: str, field: str, enough: int | None, seed: int) -> list[Document]:
    datasets, builder = _datasets(source), source
    options: dict[str, Any] = {} if enough is None else {"streaming": True}
    if source.startswith(HUB_FILES):
        builder, options = BUILDERS.get(str(kind_of(source)), ""), {**options, "data_files": source}
        if not builder:
            raise DataError(f"cannot read {source}: expected the ending of a {EXPECTED} behind it, such as *.jsonl")
    found: list[Document] = []
    length = 0
    try:
        rows = datasets.load_dataset(builder, name, split=split, **options)
        if enough is not None:
            rows = rows.shuffle(seed=seed, buffer_size=IN_DRAW)
        for number, row in enumerate(rows):
            found.append(document_of(row, field, f"{source}, row {number}"))
            length += len(found[-1])
            if enough is not None and length >= enough:
                break
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot load the data set {source!r} ({name or 'default'}, split {split}): {error}") from error
    return found


def _hub_splits(source: str, name: str | None) -> list[str]:
    if source.startswith(HUB_FILES):
        return []
    datasets = _datasets(source)
    try:
        return list(datasets.get_dataset_split_names(source, name))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot find the data set {source!r} ({name or 'default'}): {error}") from error


def _datasets(source: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"{source!r} is neither 'builtin' nor 'mixed' nor a file or folder here; "
            "for data sets from the hub: pip install 'lit-prune[hub]'"
        ) from error
