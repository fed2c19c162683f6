"""Texts of five kinds for the figures in docs: `python -m benchmarks.domains ../shared/eval/data texts`.

Writes FOLDER/KIND.jsonl, and every third document to FOLDER/unseen/KIND.jsonl, for measuring what was calibrated or
healed on the others. FOLDER/mixed.jsonl has equal parts of all kinds but prose, which stays unseen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lit_prune.data import BUILTIN, read_texts
from lit_prune.files import write_text

CODE = ("asyncio", "email", "http", "json", "logging", "unittest", "urllib", "xml")


def documents(data: Path) -> dict[str, list[str]]:
    """Documents by kind: novels, encyclopaedia, documentation, instructions with answers, source code."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    library = Path(json.__file__).parents[1]
    return {
        "prose": [f"{row['context']} {row['continuation']}" for row in rows("lambada")],
        "encyclopaedia": [row["text"] for row in rows("wikitext2_valid")],
        "documentation": read_texts(BUILTIN),
        "instructions": [
            *(f"Question: {row['question']}\nAnswer: {row['solution']}" for row in rows("gsm8k")),
            *("\n".join(row["turns"]) for row in rows("mt_bench_questions")),
        ],
        "code": [path.read_text(encoding="utf-8") for name in CODE for path in sorted((library / name).glob("*.py"))],
    }


def mixed(kinds: Sequence[Sequence[str]]) -> list[str]:
    """Equal parts of several kinds of text, by characters."""
    share = min(sum(map(len, texts)) for texts in kinds)
    parts = []
    for texts in kinds:
        left = share
        for text in texts:
            parts.append(text[:left])
            left -= len(parts[-1])
            if not left:
                break
    return parts


def write_documents(path: Path, texts: Iterable[str]) -> None:
    """Write JSON lines, one document a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{json.dumps({'text': text})}\n" for text in texts))


def main(data: str, folder: str) -> None:
    """Write all texts below a folder."""
    seen = {}
    for kind, texts in documents(Path(data)).items():
        texts = [text for text in texts if text.strip()]
        seen[kind] = [text for number, text in enumerate(texts) if number % 3]
        write_documents(Path(folder) / f"{kind}.jsonl", seen[kind])
        write_documents(Path(folder) / "unseen" / f"{kind}.jsonl", texts[::3])
    write_documents(Path(folder) / "mixed.jsonl", mixed([texts for kind, texts in seen.items() if kind != "prose"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
