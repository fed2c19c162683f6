"""What a comparison of methods gives: its lines, its rows, their means over draws, and the file that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from lit_prune.errors import DataError
from lit_prune.evaluation.perplexity import TokenLoss
from lit_prune.evaluation.tasks import TaskScore
from lit_prune.files import read_json, record_of, to_json, write_text
from lit_prune.plan import Method

DENSE, WANDA = "dense", "wanda-2:4"
Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """A line of the comparison: a method, None for the baselines, and the batches that it measures on.

    The source says where the batches came from, for the plan's readers. A compensation that comes at the end is fitted
    on `text` where there is any, and `text_source` says what that is. A method that searches several times, on other
    batches each time, has an entry for each `draw`.
    """

    label: str
    method: Method | None
    calibration: Batches
    source: Mapping[str, Any] = field(default_factory=dict)
    text: Batches = ()
    text_source: Mapping[str, Any] = field(default_factory=dict)
    draw: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """What the row depends on beside model and amount, as JSON has it."""
        return {**self.of_search, **({"compensated_on": dict(self.text_source)} if self.text else {})}

    @property
    def of_search(self) -> dict[str, Any]:
        """What the search depends on; it does not see the text that a compensation at the end is fitted on."""
        method = self.method.options if self.method else {}
        if method.get("compensate") == "none":
            del method["compensate"]
        found: dict[str, Any] = json.loads(json.dumps({**method, "calibration": dict(self.source)}))
        return found


@dataclass(frozen=True)
class Result:
    """What one method made of one model at one amount.

    Attributes:
        settings: Settings of the entry, as JSON has them.
        amount: Share of the parameters that was to go; 0 for the baselines.
        num_parameters: Parameters that are left.
        share_removed: Share of all parameters that are gone.
        zeros: Share of all parameters that a method has zeroed; 0 where it removes.
        perplexities: Perplexities by the name of the text, on windows that no method has seen.
        prefill: How many times as fast as the dense model a prompt is read.
        decode: The same for writing a token.
        num_blocks: Blocks of the dense model.
        passes: Cost of the search, in dense forward passes over the calibration tokens.
        removed: Names of what went, in order.
        draw: Number of the calibration batches that were drawn, where a method searches several times.
        losses: What the perplexities are of, by the name of the text, window by window.
        speed_intervals: From what to what `prefill` and `decode` are in 95 of 100 cases.
        dtype: Data type of the weights; empty in rows that were made before it was kept.
        cache: Share of the KV cache that is left.
        searched: Perplexity on the text of the search behind the last removal, ahead of a compensation at the end; 0
            where the search did not measure it.
    """

    model: str
    label: str
    settings: Mapping[str, Any]
    amount: float
    num_parameters: int
    share_removed: float
    zeros: float
    perplexities: Mapping[str, float]
    tasks: Mapping[str, TaskScore]
    prefill: float
    decode: float
    num_blocks: int
    passes: float
    removed: tuple[str, ...]
    draw: int = 0
    losses: Mapping[str, TokenLoss] = field(default_factory=dict)
    speed_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    dtype: str = ""
    cache: float = 1.0
    searched: float = 0.0
    seconds: float = 0.0

    @property
    def mean_accuracy(self) -> float:
        """The mean of the tasks' scores; NaN without tasks."""
        return math.fsum(score.value for score in self.tasks.values()) / len(self.tasks) if self.tasks else math.nan

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of `asdict`, from JSON."""
        tasks = {name: record_of(TaskScore, score) for name, score in data["tasks"].items()}
        losses = {text: record_of(TokenLoss, loss) for text, loss in data.get("losses", {}).items()}
        return record_of(cls, {**data, "tasks": tasks, "losses": losses})


def read_results(path: str | Path) -> tuple[dict[str, Any], list[Result]]:
    """Read the settings and the rows that `Results` wrote.

    Raises:
        DataError: The file cannot be read, or is damaged.
    """
    try:
        first, *lines = Path(path).read_text(encoding="utf-8").splitlines()
        return dict(json.loads(first)), [Result.from_dict(read_json(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read the comparison {path}: {error!r}; make it again") from error


def rank_correlation(rows: Sequence[Result], text: str) -> tuple[float, int]:
    """Measure how well perplexity on one text foretells mean accuracy, by Spearman's correlation over rows with tasks.

    Returns:
        The correlation, -1 where lower perplexity always means higher accuracy, and the number of rows.
    """
    pairs = [(row.perplexities[text], row.mean_accuracy) for row in rows if row.tasks]
    if len(pairs) < 2:
        return math.nan, len(pairs)
    perplexity, accuracy = torch.tensor(pairs, dtype=torch.float64).T
    return float(spearman_corrcoef(perplexity, accuracy)), len(pairs)


def averaged(rows: Sequence[Result]) -> list[Result]:
    """One row for all draws of a method on a model at an amount, with the names of what the first of them removed.

    Of perplexities it holds the geometric means, of all other figures the arithmetic ones.
    """
    groups: dict[tuple[str, str, float], list[Result]] = {}
    for row in rows:
        groups.setdefault((row.model, row.label, row.amount), []).append(row)
    return [_mean(own) if len(own) > 1 else own[0] for own in groups.values()]


def _mean(draws: Sequence[Result]) -> Result:
    first = draws[0]
    logs = {text: fmean(math.log(row.perplexities[text]) for row in draws) for text in first.perplexities}
    scores = {name: fmean(row.tasks[name].value for row in draws) for name in first.tasks}
    return replace(
        first,
        num_parameters=round(fmean(row.num_parameters for row in draws)),
        share_removed=fmean(row.share_removed for row in draws),
        zeros=fmean(row.zeros for row in draws),
        perplexities={text: math.exp(log) for text, log in logs.items()},
        tasks={name: replace(score, value=scores[name], items=()) for name, score in first.tasks.items()},
        losses={},
        speed_intervals={},
        prefill=fmean(row.prefill for row in draws),
        decode=fmean(row.decode for row in draws),
        passes=fmean(row.passes for row in draws),
        searched=fmean(row.searched for row in draws),
        seconds=fmean(row.seconds for row in draws),
    )


class Results:
    """The rows so far, in a file that is written anew after each: a comparison that was stopped goes on.

    Args:
        path: File of JSON lines; the first line holds the settings that the rows are valid for.
        header: The present settings, in plain types.

    Raises:
        DataError: The file is of a comparison with other settings.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._header = json.loads(json.dumps(to_json({**header})))
        self.found: list[Result] = []
        if path.exists():
            there, self.found = read_results(path)
            if there != self._header:
                names = [name for name in {**there, **self._header} if there.get(name) != self._header.get(name)]
                raise DataError(f"{path} is of a comparison with other {', '.join(names)}; name another output folder")

    def get(self, model: str, entry: Entry, amount: float) -> Result | None:
        """The row, None where it is not there yet; a DataError where it is there with other settings."""
        wanted = (model, entry.label, amount, entry.draw)
        row = next((row for row in self.found if (row.model, row.label, row.amount, row.draw) == wanted), None)
        if row is not None and row.settings != entry.settings:
            raise DataError(f"{self.path} has {entry.label!r} with other settings; give it another label")
        return row

    def add(self, row: Result) -> None:
        """Keep a row and write all of them."""
        self.found.append(row)
        lines = [json.dumps(self._header), *(json.dumps(to_json(asdict(found))) for found in self.found)]
        write_text(self.path, "".join(f"{line}\n" for line in lines))
