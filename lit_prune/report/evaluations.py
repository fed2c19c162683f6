"""Evaluations: models side by side by perplexity, tasks, answers and signs of damage, with differences from another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lit_prune.errors import DataError
from lit_prune.evaluation import Measured, Prompt, Signs, TaskScore, TokenLoss, exceeds_error
from lit_prune.files import markdown_inline, markdown_line, markdown_quote, read_json, record_of
from lit_prune.report.drawing import points_drawing
from lit_prune.report.pieces import EMPTY, Cell, Piece, Table, ppl, titled

Found = TypeVar("Found", TokenLoss, TaskScore)
EVALUATION_FILE = "evaluation.json"
BEFORE_AFTER = ("", "before", "after", "change", "more than chance")
CHANCE = "more than chance: the difference is above 1.96 of its standard errors, over the same windows and items"
SIGNS = ("model", "tokens", "ended", "repeated 4-grams", "cut short", "same next token", "KL, nats")
SHOWN_POSITIONS = 16
"""The divergence in the table is of so many positions at the beginning of the answers: they are the most alike."""


@dataclass(frozen=True)
class Dialogue:
    """The same prompt to several models: the user's turns, and by the name of the model one answer a turn."""

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


@dataclass(frozen=True)
class Evaluation:
    """What `lit-prune evaluate` left: the folder as it was given, settings, the models' figures, the reference's name.

    In the file, `answers` are a list of `{"prompt": [turn, ...], "answers": {model: [turn, ...]}}`; a turn is a text,
    or a chat's mapping with its text as `content`. `signs` are by the name of the model.
    """

    name: str
    settings: Mapping[str, Any]
    rows: tuple[Measured, ...]
    against: str | None = None
    answers: tuple[Dialogue, ...] = ()
    signs: Mapping[str, Signs] = field(default_factory=dict)


@dataclass(frozen=True)
class Match:
    """A run's row of an evaluation (`after`), and the reference's (`before`, None where there is none)."""

    evaluation: Evaluation
    after: Measured
    before: Measured | None

    @property
    def models(self) -> list[str]:
        """The names of the models, the reference's first."""
        return [row.model for row in (self.before, self.after) if row is not None]

    @property
    def holds_answers(self) -> bool:
        """Whether no others have answered: three models stand side by side with their evaluation."""
        return all(dialogue.answers.keys() <= set(self.models) for dialogue in self.evaluation.answers)

    @property
    def signs(self) -> dict[str, Signs]:
        """Signs of damage in the models' answers."""
        return {name: self.evaluation.signs[name] for name in self.models if name in self.evaluation.signs}

    def table(self, found: Iterable[Difference]) -> Table:
        """Figures before and after."""
        return Table.of(BEFORE_AFTER, (difference.row for difference in found), note=CHANCE if self.before else "")


class Difference(NamedTuple):
    """One figure of a model and its reference, in words; `exceeds` is None where there is no reference."""

    name: str
    before: str
    after: str
    change: str
    exceeds: bool | None

    @property
    def row(self) -> list[str | Cell]:
        """The cells of `BEFORE_AFTER`."""
        return [*self[:4], "" if self.exceeds is None else Cell("yes" if self.exceeds else "no", strong=self.exceeds)]

    @property
    def cell(self) -> Cell:
        """The figure after and its change as one cell."""
        return Cell(f"{self.after} ({self.change})" if self.change else self.after, strong=bool(self.exceeds))


def evaluation_markdown(rows: Sequence[Measured], *, compared: bool) -> str:
    """Write a Markdown table of what was measured on the same texts and tasks, one model a row.

    Where they are `compared`, differences from the first model stand in brackets, bold where they exceed their error.
    """
    table = _models_table(rows, rows[0] if compared else None, lambda found: f"{found.ppl:.2f}", unit="")
    return f"{table.markdown}\n"


def answers_markdown(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Write every question with what each model answered, turn by turn, as quotes that nothing in them can end.

    The answers are by the model's name, and of each the texts of each question's turns.
    """
    parts = ["# Answers"]
    for number, prompt in enumerate(prompts):
        category = f" ({prompt.category})" if prompt.category else ""
        parts.append(f"## {markdown_inline(f'{prompt.id}{category}')}")
        for turn, question in enumerate(prompt.turns):
            parts.append(f"Question:\n\n{markdown_quote(question, EMPTY)}")
            for name, said in answers.items():
                parts.append(f"{markdown_line(name)}:\n\n{markdown_quote(said[number][turn], EMPTY)}")
    return "\n\n".join(parts) + "\n"


def signs_markdown(signs: Mapping[str, Signs]) -> str:
    """Write signs of damage, by the models' names, as a Markdown table with one model a row."""
    return f"{_signs_table(signs).markdown}\n"


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read what `lit-prune evaluate` left; a file that is missing, damaged or holds no model is a DataError."""
    path = Path(folder).expanduser() / EVALUATION_FILE
    try:
        data = read_json(path.read_text(encoding="utf-8"))
        rows = tuple(Measured.from_dict(row) for row in data["models"])
        answers = tuple(_dialogue(entry) for entry in data.get("answers") or ())
        signs = {name: record_of(Signs, found) for name, found in (data.get("signs") or {}).items()}
        settings = dict(data["settings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read the evaluation {path}: {error!r}; make it again") from error
    require_rows(rows, path)
    return Evaluation(str(folder), settings, rows, settings.pop("against", None), answers, signs)


def require_rows(rows: Sequence[object], path: Path) -> None:
    """Stop with a DataError where a file of results holds none."""
    if not rows:
        raise DataError(f"{path} holds no rows yet; finish the command that writes it")


def _dialogue(data: Mapping[str, Any]) -> Dialogue:
    return Dialogue(_turns(data["prompt"]), {str(name): _turns(said) for name, said in data["answers"].items()})


def _turns(data: Any) -> tuple[str, ...]:
    turns = data if isinstance(data, list) else [data]
    return tuple(str(turn["content"] if isinstance(turn, dict) else turn) for turn in turns)


def evaluation_pieces(evaluation: Evaluation, base: str, *, with_answers: bool) -> Iterator[Piece]:
    """All models of an evaluation, beside `base` where it names no reference; answers where no run shows them."""
    rows = evaluation.rows
    reference = next((row for row in rows if row.model == (evaluation.against or base)), None)
    note = f"In brackets the difference from {reference.model}; bold: {CHANCE}" if reference else ""
    yield Piece("table", _models_table(rows, reference, _ppl, " points", note))
    yield Piece("figures", [_drawing(rows, text) for text in rows[0].perplexities])
    yield Piece("note", settings_line(evaluation.settings))
    if with_answers:
        signs = [Piece("table", _signs_table(evaluation.signs))] if evaluation.signs else []
        yield from titled("Signs of damage", signs)
        dialogues = (dialogue.piece(list(dialogue.answers)) for dialogue in evaluation.answers)
        yield from titled("Answers side by side", dialogues)


def _drawing(rows: Sequence[Measured], text: str) -> str:
    measured = [row for row in rows if text in row.perplexities]
    points = {row.model: (row.num_parameters / 1e6, row.perplexities[text].ppl) for row in measured}
    return points_drawing(points, "parameters (millions)", f"perplexity on {text}")


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings in one line, without those that say nothing."""
    listed = {name: value for name, value in settings.items() if value is not None and not name.startswith("lit_prune")}
    return ", ".join(f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in listed.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def match_pieces(found: Sequence[Match]) -> Iterator[Piece]:
    """What evaluations say of one run's model: perplexity, tasks, signs of damage."""
    yield from titled("Perplexity", _tables(found, lambda match: match.table(perplexities(match.after, match.before))))
    tasked = [match for match in found if match.after.tasks]
    yield from titled("Tasks", _tables(tasked, lambda match: match.table(_tasks(match.after, match.before, " points"))))
    answered = [match for match in found if match.after.model in match.evaluation.signs]
    yield from titled("Signs of damage", _tables(answered, lambda match: _signs_table(match.signs)))


def _tables(found: Iterable[Match], table: Callable[[Match], Table]) -> Iterator[Piece]:
    """Each table once, with the names of the evaluations that it is from: two may have measured the same."""
    names: dict[Table, list[str]] = {}
    for match in found:
        names.setdefault(table(match), []).append(match.evaluation.name)
    for shown, evaluations in names.items():
        yield Piece("table", shown)
        yield Piece("origin", ", ".join(evaluations))


def _signs_table(signs: Mapping[str, Signs]) -> Table:
    note = "Next token and KL at the positions of the reference's answers" if len(signs) > 1 else ""
    return Table.of(SIGNS, ([name, *_cells(found)] for name, found in signs.items()), note=note)


def _cells(signs: Signs) -> Iterator[str]:
    yield f"{signs.tokens:.1f}"
    yield f"{signs.ended:.0%}"
    for share in (signs.repetition, signs.cut_short, signs.agreement):
        yield "" if share is None else f"{share:.1%}"
    yield f"{statistics.fmean(signs.divergence[:SHOWN_POSITIONS]):.3f}" if signs.divergence else ""


def _models_table(
    rows: Sequence[Measured], reference: Measured | None, shown: Callable[[TokenLoss], str], unit: str, note: str = ""
) -> Table:
    heads = ["model", "parameters", *(f"ppl {text}" for text in rows[0].perplexities)]
    heads += [f"{name} ({score.metric})" for name, score in rows[0].tasks.items()]
    cells: list[list[str | Cell]] = []
    for row in rows:
        other = None if row is reference else reference
        found = [*perplexities(row, other, shown), *_tasks(row, other, unit)]
        cells.append([row.model, f"{row.num_parameters:,}", *(difference.cell for difference in found)])
    return Table.of(heads, cells, note=note)


def _ppl(found: TokenLoss) -> str:
    # The error of exp(nll), to first order.
    return f"{ppl(found.ppl)} ± {ppl(found.ppl * found.error)}" if found.error else ppl(found.ppl)


def perplexities(
    row: Measured, reference: Measured | None, shown: Callable[[TokenLoss], str] = _ppl
) -> Iterator[Difference]:
    """The perplexities of a model beside those of its reference, text by text."""
    for name, after in row.perplexities.items():
        before = reference.perplexities.get(name) if reference else None
        rise = after.nll - before.nll if before else 0
        yield _difference(name, before, after, shown, rise, f"{math.expm1(min(rise, 700)):+.1%}")


def _tasks(row: Measured, reference: Measured | None, unit: str) -> Iterator[Difference]:
    for name, after in row.tasks.items():
        before = reference.tasks.get(name) if reference else None
        rise = after.value - before.value if before else 0
        title, change = f"{name} ({after.metric})", f"{100 * rise:+.1f}{unit}"
        yield _difference(title, before, after, lambda score: f"{score.value:.1%} ± {score.error:.1%}", rise, change)


def _difference(
    name: str, before: Found | None, after: Found, shown: Callable[[Found], str], rise: float, change: str
) -> Difference:
    if before is None:
        return Difference(name, "", shown(after), "", None)
    paired = after.error_of_rise(before)
    errors = (after.error, before.error) if paired is None else (paired,)
    return Difference(name, shown(before), shown(after), change, exceeds_error(rise, *errors))
