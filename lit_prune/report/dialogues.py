"""Answers of several models side by side, and what they show."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from lit_prune.evaluation import Prompt, Signs
from lit_prune.files import markdown_inline, markdown_line, markdown_quote
from lit_prune.report.pieces import EMPTY, Piece, Table

SIGNS = ("model", "tokens", "ended", "repeated 4-grams", "cut short", "same next token", "KL, nats")
SHOWN_POSITIONS = 16
"""The divergence in the table is of so many positions at the beginning of the answers: they are the most alike."""


@dataclass(frozen=True)
class Dialogue:
    """The same prompt to several models.

    Attributes:
        prompt: The user's turns.
        answers: By the name of the model, one answer a turn.
    """

    prompt: tuple[str, ...]
    answers: Mapping[str, tuple[str, ...]]

    def piece(self, labels: Sequence[str]) -> Piece:
        """Turn by turn what the user says, and who of some models answers what."""
        columns = zip_longest(*(self.answers[label] for label in labels), fillvalue="")
        turns = [
            (said, list(zip(labels, answers, strict=True)) if answers else [])
            for said, answers in zip_longest(self.prompt, columns, fillvalue="")
        ]
        return Piece("dialogue", turns)


def answers_markdown(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Write every question with what each model answered, turn by turn, as quotes that nothing in them can end.

    Args:
        prompts: The questions.
        answers: By the model's name, the texts of each question's turns.
    """
    parts = []
    for number, prompt in enumerate(prompts):
        category = f" ({prompt.category})" if prompt.category else ""
        parts.append(f"## {markdown_inline(f'{prompt.id}{category}')}")
        for turn, question in enumerate(prompt.turns):
            parts.append(f"Question:\n\n{markdown_quote(question, EMPTY)}")
            for name, said in answers.items():
                parts.append(f"{markdown_line(name)}:\n\n{markdown_quote(said[number][turn], EMPTY)}")
    return "\n\n".join(["# Answers", *parts]) + "\n"


def signs_markdown(signs: Mapping[str, Signs]) -> str:
    """Write signs of damage, by the models' names, as a Markdown table with one model a row."""
    return f"{signs_table(signs).markdown}\n"


def signs_table(signs: Mapping[str, Signs]) -> Table:
    """Signs of damage in the answers of some models, by their names."""
    note = "Next token and KL at the positions of the reference's answers" if len(signs) > 1 else ""
    return Table.of(SIGNS, ([name, *_cells(found)] for name, found in signs.items()), note=note)


def _cells(signs: Signs) -> Iterator[str]:
    yield f"{signs.tokens:.1f}"
    yield f"{signs.ended:.0%}"
    for share in (signs.repetition, signs.cut_short, signs.agreement):
        yield "" if share is None else f"{share:.1%}"
    yield f"{statistics.fmean(signs.divergence[:SHOWN_POSITIONS]):.3f}" if signs.divergence else ""
