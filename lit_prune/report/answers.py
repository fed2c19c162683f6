"""Answers of several models side by side, and the files that the field's judges read."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence

from lit_prune.evaluation import Prompt, Signs
from lit_prune.files import markdown_inline, markdown_line, markdown_table
from lit_prune.report.markdown import quoted

SIGNS = ("model", "tokens", "ended", "repeated 4-grams", "cut short", "same next token", "KL, nats")
SHOWN_POSITIONS = 16
"""The divergence in the table is of so many positions at the beginning of the answers: they are the most alike."""


def answers_markdown(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Every question with what each model answered, turn by turn, as quotes that nothing in them can end.

    Args:
        prompts: The questions.
        answers: By the model's name, the texts of each question's turns.
    """
    parts = []
    for number, prompt in enumerate(prompts):
        category = f" ({prompt.category})" if prompt.category else ""
        parts.append(f"## {markdown_inline(f'{prompt.id}{category}')}")
        for turn, question in enumerate(prompt.turns):
            parts.append(f"Question:\n\n{quoted(question)}")
            parts += [f"{markdown_line(name)}:\n\n{quoted(said[number][turn])}" for name, said in answers.items()]
    return "\n\n".join(["# Answers", *parts]) + "\n"


def signs_markdown(signs: Mapping[str, Signs]) -> str:
    """Signs of damage as a table, one model a row."""
    return f"{markdown_table(SIGNS, sign_rows(signs))}\n"


def sign_rows(signs: Mapping[str, Signs]) -> list[list[str]]:
    """The cells under `SIGNS`, plain text."""
    rows = []
    for name, each in signs.items():
        cells = [name, f"{each.tokens:.1f}", f"{each.ended:.0%}", f"{each.repetition:.1%}"]
        cells += ["" if value is None else f"{value:.1%}" for value in (each.cut_short, each.agreement)]
        cells.append(f"{statistics.fmean(each.divergence[:SHOWN_POSITIONS]):.3f}" if each.divergence else "")
        rows.append(cells)
    return rows


def mt_bench_answers(model: str, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], *, time: float) -> str:
    """The file `model_answer/MODEL.jsonl` of FastChat's llm_judge.

    Args:
        model: Its name.
        prompts: The questions.
        answers: Texts of each question's turns.
        time: Seconds since 1970, for the file's readers.
    """
    lines = []
    for prompt, turns in zip(prompts, answers, strict=True):
        entry = {
            "question_id": prompt.id,
            "answer_id": hashlib.sha256(f"{model}\n{prompt.id}\n{list(turns)}".encode()).hexdigest()[:22],
            "model_id": model,
            "choices": [{"index": 0, "turns": list(turns)}],
            "tstamp": time,
        }
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines)


def alpaca_eval_outputs(model: str, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> str:
    """The file of model outputs that alpaca_eval reads: first turns alone, as it has no others."""
    entries = [
        {"instruction": prompt.turns[0], "output": turns[0], "generator": model}
        for prompt, turns in zip(prompts, answers, strict=True)
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
