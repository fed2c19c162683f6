"""Questions to models, and answers, in the files that the field's judges use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_prune.errors import DataError
from lit_prune.files import foreign_json, read_text, whole_characters

FIELDS = ("instruction", "prompt", "question")
"""Where a question of one turn stands; the first is AlpacaEval's."""
FORMS = '{"question_id": …, "category": …, "turns": […]}, {"instruction": …} or {"prompt": …}'


@dataclass(frozen=True)
class Prompt:
    """What a user says turn by turn; the model answers every turn.

    The id is the question's in the file, else its number from 1; the category is empty where the file has none.
    """

    id: int | str
    turns: tuple[str, ...]
    category: str = ""


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read questions from a file.

    Args:
        path: A `.txt` with a question a line, JSON lines, or a `.json` list; objects in MT-Bench's form (`question_id`,
            `category`, `turns`), AlpacaEval's (`instruction`), or with `prompt` or `question`.

    Raises:
        DataError: The file is missing, empty or damaged, or two questions have one id; the message names the entry.
    """
    path = Path(path).expanduser()
    try:
        text = whole_characters(read_text(path))
    except DataError as error:
        raise DataError(f"cannot read the prompts {path}: {error}") from error
    prompts = [_read(entry, number, path) for number, entry in enumerate(_entries(text, path), start=1)]
    if not prompts:
        raise DataError(f"{path} holds no prompts; expected lines of text, or objects such as {FORMS}")
    ids = [prompt.id for prompt in prompts]
    if twice := [key for key in ids if ids.count(key) > 1]:
        raise DataError(f"{path} has two prompts with the id {twice[0]!r}")
    return prompts


def mt_bench_answers(model: str, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], *, time: float) -> str:
    """Write the file `model_answer/MODEL.jsonl` of FastChat's llm_judge.

    `answers` are the texts of each question's turns, and `time` is seconds since 1970.
    """
    entries = [
        {
            "question_id": prompt.id,
            "answer_id": hashlib.sha256(f"{model}\n{prompt.id}\n{list(turns)}".encode()).hexdigest()[:22],
            "model_id": model,
            "choices": [{"index": 0, "turns": list(turns)}],
            "tstamp": time,
        }
        for prompt, turns in zip(prompts, answers, strict=True)
    ]
    return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries)


def alpaca_eval_outputs(model: str, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> str:
    """Write the file of model outputs that alpaca_eval reads: first turns alone, as it has no others."""
    entries = [
        {"instruction": prompt.turns[0], "output": turns[0], "generator": model}
        for prompt, turns in zip(prompts, answers, strict=True)
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _entries(text: str, path: Path) -> Sequence[Any]:
    lines = [line for line in text.splitlines() if line.strip()]
    if path.suffix == ".txt":
        return [line.strip() for line in lines]
    if path.suffix == ".json":
        found = foreign_json(text, str(path))
        if not isinstance(found, list):
            raise DataError(f"{path} must be a list of prompts; found a {type(found).__name__}")
        return found
    return [foreign_json(line, f"{path}, prompt {number}") for number, line in enumerate(lines, start=1)]


def _read(entry: Any, number: int, path: Path) -> Prompt:
    if isinstance(entry, str):
        return Prompt(number, (entry,))
    fields = entry if isinstance(entry, Mapping) else {}
    turns = fields.get("turns", [fields[name] for name in FIELDS if name in fields][:1])
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise DataError(f"{path}, prompt {number}: expected {FORMS}; found {json.dumps(entry)[:200]}")
    key = fields.get("question_id", fields.get("id", number))
    if not isinstance(key, int | str):
        raise DataError(f"{path}, prompt {number}: an id is a number or text; found {key!r}")
    return Prompt(key, tuple(turns), str(fields.get("category", "")))
