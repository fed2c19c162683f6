"""Evaluations: models side by side by perplexity, tasks and signs of damage, with differences from a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lit_prune.errors import DataError
from lit_prune.evaluation import Measured, Signs, TaskScore, TokenLoss, exceeds_error
from lit_prune.files import read_json, record_of
from lit_prune.report.dialogues import Dialogue, signs_table
from lit_prune.report.drawing import points_drawing
from lit_prune.report.pieces import Cell, Piece, Table, ppl, titled

Found = TypeVar("Found", TokenLoss, TaskScore)
EVALUATION_FILE = "evaluation.json"
BEFORE_AFTER = ("", "before", "after", "change", "more than chance")
CHANCE = "more than chance: the difference is above 1.96 standard errors, as if the two had been measured apart"


@dataclass(frozen=True)
class Evaluation:
    """What `lit-prune evaluate` left in a folder.

    Attributes:
        name: The folder, as it was given.
        settings: How the models were measured.
        rows: The figures of each model, in the order of measurement.
        against: Name of the reference, None where there was none or it is not recorded.
        answers: Answers to the same prompts. In the file a list `answers` of `{"prompt": [turn, ...], "answers":
            {model: [turn, ...]}}`; a turn is a text, or a chat's mapping with its text as `content`.
        signs: Signs of damage in the answers, by the name of the model.
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
        chance = "" if self.exceeds is None else Cell("yes" if self.exceeds else "no", strong=self.exceeds)
        return [self.name, self.before, self.after, self.change, chance]

    @property
    def cell(self) -> Cell:
        """The figure after and its change as one cell."""
        return Cell(f"{self.after} ({self.change})" if self.change else self.after, strong=bool(self.exceeds))


def evaluation_markdown(rows: Sequence[Measured], *, compared: bool) -> str:
    """Write a Markdown table, one model a row.

    Args:
        rows: What was measured of each model, on the same texts and tasks.
        compared: Whether the others are held against the first: bold where the difference exceeds its error.
    """
    table = _models_table(rows, rows[0] if compared else None, lambda found: f"{found.ppl:.2f}", unit="")
    return f"{table.markdown}\n"


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read what `lit-prune evaluate` left in a folder.

    Raises:
        DataError: The file cannot be read, is damaged, or holds no model.
    """
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
    """One text, texts, or a chat's mappings with `content`, as texts."""
    turns = data if isinstance(data, list) else [data]
    return tuple(str(turn["content"] if isinstance(turn, dict) else turn) for turn in turns)


def evaluation_pieces(evaluation: Evaluation, base: str, *, with_answers: bool) -> Iterator[Piece]:
    """All models of an evaluation, beside `base` where it names no reference; answers where no run shows them."""
    rows = evaluation.rows
    reference = next((row for row in rows if row.model == (evaluation.against or base)), None)
    note = f"In brackets the difference from {reference.model}; bold: above 1.96 standard errors" if reference else ""
    yield Piece("table", _models_table(rows, reference, _ppl, " points", note))
    yield Piece("figures", list(_figures(rows)))
    yield Piece("note", settings_line(evaluation.settings))
    if with_answers:
        yield from titled(
            "Signs of damage", [Piece("table", signs_table(evaluation.signs))] if evaluation.signs else []
        )
        dialogues = (dialogue.piece(list(dialogue.answers)) for dialogue in evaluation.answers)
        yield from titled("Answers side by side", dialogues)


def _figures(rows: Sequence[Measured]) -> Iterator[str]:
    for text in rows[0].perplexities:
        points = {
            row.model: (row.num_parameters / 1e6, row.perplexities[text].ppl)
            for row in rows
            if text in row.perplexities
        }
        yield points_drawing(points, "parameters (millions)", f"perplexity on {text}")


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
    yield from titled("Perplexity", _with_names((perplexity_table(match), match) for match in found))
    tasks = ((match, _tasks(match.after, match.before, " points")) for match in found if match.after.tasks)
    yield from titled("Tasks", _with_names((_before_after(match, differences), match) for match, differences in tasks))
    answered = (match for match in found if match.after.model in match.evaluation.signs)
    yield from titled("Signs of damage", _with_names((_signs_table(match), match) for match in answered))


def _with_names(found: Iterable[tuple[Table, Match]]) -> Iterator[Piece]:
    """Each table once, with the names of the evaluations that it is from: two may have measured the same."""
    names: dict[Table, list[str]] = {}
    for table, match in found:
        names.setdefault(table, []).append(match.evaluation.name)
    for table, evaluations in names.items():
        yield Piece("table", table)
        yield Piece("origin", ", ".join(evaluations))


def perplexity_table(match: Match) -> Table:
    """Perplexity on each text before and after."""
    return _before_after(match, _perplexities(match.after, match.before, _ppl))


def _before_after(match: Match, found: Iterable[Difference]) -> Table:
    return Table.of(BEFORE_AFTER, (difference.row for difference in found), note=CHANCE if match.before else "")


def _signs_table(match: Match) -> Table:
    names = [row.model for row in (match.before, match.after) if row is not None]
    signs = match.evaluation.signs
    return signs_table({name: signs[name] for name in names if name in signs})


def _models_table(
    rows: Sequence[Measured], reference: Measured | None, shown: Callable[[TokenLoss], str], unit: str, note: str = ""
) -> Table:
    heads = ["model", "parameters", *(f"ppl {text}" for text in rows[0].perplexities)]
    heads += [f"{name} ({score.metric})" for name, score in rows[0].tasks.items()]
    cells: list[list[str | Cell]] = []
    for row in rows:
        other = None if row is reference else reference
        found = [*_perplexities(row, other, shown), *_tasks(row, other, unit)]
        cells.append([row.model, f"{row.num_parameters:,}", *(difference.cell for difference in found)])
    return Table.of(heads, cells, note=note)


def _perplexities(row: Measured, reference: Measured | None, shown: Callable[[TokenLoss], str]) -> Iterator[Difference]:
    for name, after in row.perplexities.items():
        before = reference.perplexities.get(name) if reference else None
        rise = after.nll - before.nll if before else None
        change = "" if rise is None else f"{math.expm1(min(rise, 700)):+.1%}"
        yield _difference(name, before, after, shown, rise, change)


def _tasks(row: Measured, reference: Measured | None, unit: str) -> Iterator[Difference]:
    for name, after in row.tasks.items():
        before = reference.tasks.get(name) if reference else None
        rise = after.value - before.value if before else None
        change = "" if rise is None else f"{100 * rise:+.1f}{unit}"
        title = f"{name} ({after.metric})"
        yield _difference(title, before, after, lambda score: f"{score.value:.1%} ± {score.error:.1%}", rise, change)


def _difference(
    name: str, before: Found | None, after: Found, shown: Callable[[Found], str], rise: float | None, change: str
) -> Difference:
    if before is None or rise is None:
        return Difference(name, "", shown(after), "", None)
    exceeds = exceeds_error(rise, after.error, before.error)
    return Difference(name, shown(before), shown(after), change, exceeds)


def _ppl(found: TokenLoss) -> str:
    # The error of exp(nll), to first order.
    return f"{ppl(found.ppl)} ± {ppl(found.ppl * found.error)}" if found.error else ppl(found.ppl)
