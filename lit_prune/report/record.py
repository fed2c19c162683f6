"""The summary of a run as JSON, for programs and for the page: what `summary_markdown` shows, unrounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_prune.errors import DataError
from lit_prune.files import checked, read_json, to_json, write_text
from lit_prune.plan import PrunePlan
from lit_prune.report.summary import Answer, Row

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Summary:
    """What was measured before and after a run.

    Attributes:
        rows: Figures.
        plan: What was removed, and how that was found.
        answers: To the same questions.
        notes: Sentences.
    """

    rows: tuple[Row, ...]
    plan: PrunePlan
    answers: tuple[Answer, ...] = ()
    notes: tuple[str, ...] = ()


def save_summary(
    folder: str | Path,
    rows: Sequence[Row],
    *,
    plan: PrunePlan,
    answers: Sequence[Answer] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write `summary.json` into a folder, aside and then renamed.

    Args:
        folder: Of the run.
        rows: Figures before and after.
        plan: What was removed, and how that was found.
        answers: Before and after.
        notes: Sentences.
    """
    data = {"figures": [asdict(each) for each in rows], "answers": [asdict(each) for each in answers]}
    record = to_json({**data, "notes": list(notes), "plan": plan.to_dict()})
    return write_text(Path(folder) / SUMMARY_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_summary(path: str | Path) -> Summary:
    """The inverse of `save_summary`.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read, or is damaged.
        PlanError: The plan in it is.
    """
    try:
        data = read_json(Path(path).read_text(encoding="utf-8"))
        rows = tuple(checked(Row, each) for each in data["figures"])
        answers = tuple(checked(Answer, each) for each in data["answers"])
        return Summary(rows, PrunePlan.from_dict(data["plan"]), answers, tuple(map(str, data["notes"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read the summary {path}: {error!r}") from error
