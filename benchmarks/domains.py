"""Texts of five kinds for the figures in docs: `python -m benchmarks.domains texts`, from data sets of the hub.

Writes FOLDER/KIND.jsonl, and every third document to FOLDER/unseen/KIND.jsonl, for measuring what was calibrated or
healed on the others. FOLDER/mixed.jsonl has equal parts of all kinds but prose, which stays unseen,
FOLDER/all/encyclopaedia.jsonl every article, and FOLDER/questions.jsonl MT-Bench's questions for `evaluate --prompts`.
`--source DIR` reads the sets from a folder of JSON lines instead, by the names of `SETS`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_prune.data import BUILTIN, read_texts
from lit_prune.errors import DataError
from lit_prune.files import write_text

Rows = list[dict[str, Any]]
CODE = ("asyncio", "email", "http", "json", "logging", "unittest", "urllib", "xml")
SPACED = ((r" @(.)@ ", r"\1"), (r" ([,.;:?!)\]])", r"\1"), (r"([(\[]) ", r"\1"), (r" ('(?:s|t|re|ve|ll|d|m))\b", r"\1"))
"""What WikiText's tokens are apart, and how they are written: expressions with what stands for them."""


def _passage(row: Mapping[str, Any]) -> dict[str, Any]:
    context, _, continuation = row["text"].rpartition(" ")
    return {"context": context, "continuation": continuation}


def _article(row: Mapping[str, Any]) -> dict[str, Any]:
    text = row["page"]
    for spaced, written in SPACED:
        text = re.sub(spaced, written, text)
    return {"text": re.sub(r'" ([^"\n]*?) "', r'"\1"', text).strip()}


def _problem(row: Mapping[str, Any]) -> dict[str, Any]:
    solution, _, answer = re.sub(r"<<.*?>>", "", row["answer"]).partition("\n#### ")
    return {"question": row["question"], "solution": solution, "answer": answer}


def _dialogue(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"question_id": row["prompt_id"], "category": row["category"], "turns": list(row["prompt"])}


SETS: dict[str, tuple[str, str | None, str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "lambada": ("EleutherAI/lambada_openai", "default", "test", _passage),
    "wikitext2_valid": ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "validation", _article),
    "gsm8k": ("openai/gsm8k", "main", "test", _problem),
    "mt_bench_questions": ("HuggingFaceH4/mt_bench_prompts", None, "train", _dialogue),
}
"""Sets by their names in a folder: the hub's name, configuration and split, and how a row becomes one of the folder."""


def read_sets(source: str | None) -> dict[str, Rows]:
    """Rows of every set, from a folder, or from the hub where there is none.

    Raises:
        DataError: The package that reads the hub is not installed.
    """
    if source is not None:
        files = {name: Path(source) / f"{name}.jsonl" for name in SETS}
        return {
            name: [json.loads(line) for line in file.read_text("utf-8").splitlines()] for name, file in files.items()
        }
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError("the hub is read by the package datasets: pip install 'lit-prune[hub]'") from error
    return {
        name: [row_of(row) for row in load_dataset(path, configuration, split=split)]
        for name, (path, configuration, split, row_of) in SETS.items()
    }


def documents(sets: Mapping[str, Rows]) -> dict[str, list[str]]:
    """Documents by kind: novels, encyclopaedia, documentation, instructions with answers, source code."""
    library = Path(json.__file__).parents[1]
    return {
        "prose": [f"{row['context']} {row['continuation']}" for row in sets["lambada"]],
        "encyclopaedia": [row["text"] for row in sets["wikitext2_valid"]],
        "documentation": read_texts(BUILTIN),
        "instructions": [
            *(f"Question: {row['question']}\nAnswer: {row['solution']}" for row in sets["gsm8k"]),
            *("\n".join(row["turns"]) for row in sets["mt_bench_questions"]),
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


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def write_documents(path: Path, texts: Iterable[str]) -> None:
    """Write JSON lines, one document a line."""
    write_rows(path, ({"text": text} for text in texts))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all texts below a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the texts are written")
    parser.add_argument("--source", help="a folder with the sets as JSON lines, in place of the hub")
    asked = parser.parse_args(arguments)
    sets, seen = read_sets(asked.source), {}
    for kind, texts in documents(sets).items():
        texts = [text for text in texts if text.strip()]
        seen[kind] = [text for number, text in enumerate(texts) if number % 3]
        write_documents(asked.folder / f"{kind}.jsonl", seen[kind])
        write_documents(asked.folder / "unseen" / f"{kind}.jsonl", texts[::3])
    write_documents(asked.folder / "mixed.jsonl", mixed([texts for kind, texts in seen.items() if kind != "prose"]))
    write_documents(asked.folder / "all/encyclopaedia.jsonl", (row["text"] for row in sets["wikitext2_valid"]))
    write_rows(asked.folder / "questions.jsonl", sets["mt_bench_questions"])


if __name__ == "__main__":
    main()
