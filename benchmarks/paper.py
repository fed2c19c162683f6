"""`python -m benchmarks.paper MODEL`: a model pruned as the paper does, and by its rivals, beside what was published.

One table from one command: perplexity on the whole test part of WikiText-2, five tasks, parameters, speeds, and the
time of the search. Figures of publications stand below those of the same method; what is not known is a dash.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from benchmarks import run
from lit_prune.anatomy import context_length
from lit_prune.commands.arguments import require_writable
from lit_prune.commands.compare import read_lines
from lit_prune.commands.options import Loading
from lit_prune.data import calibration_batches, drawn_windows, fingerprint, read_texts, require_positive, token_windows
from lit_prune.evaluation import (
    DENSE,
    Comparison,
    Entry,
    Result,
    Results,
    chosen_tasks,
    require_sizes,
    task_scores,
)
from lit_prune.evaluation.results import Batches
from lit_prune.files import markdown_line, markdown_table, say, write_text
from lit_prune.loading.models import skeleton
from lit_prune.plan import read_method
from lit_prune.searches import require_share

PUBLISHED = Path(__file__).with_name("published.yaml")
METHODS: tuple[str | dict[str, Any], ...] = (
    {"method": "nri", "compensate": "none"},
    {"method": "nri-lazy", "label": "nri-lazy, refit"},
    {"method": "blockpruner"},
    {"method": "sleb"},
    {"method": "shortgpt"},
)
"""The paper's own, this project's, and those with published figures."""
DASH = "-"


@dataclass(frozen=True)
class Protocol:
    """What is read, and what is measured.

    Attributes:
        data: Text of the search, a hub data set whose part `train` is read, or a file.
        test: Text that perplexity is measured on, all of it, a file; by default the part `test` of the hub data set.
        data_name: Configuration of the hub data set; null for files.
        window: Tokens in a window.
        num_windows: Windows of the search, drawn at random.
        num_test: Windows of the test text, the first ones; all by default.
        batch_size: Windows in a batch.
        seed: Decides which windows are drawn.
        tasks: Tasks of lm-evaluation-harness (needs the extra eval); [] leaves them out.
        include_path: Folder with further task files.
        limit: Items of every task; all by default.
        new_tokens: Tokens whose writing is timed.
        repeats: Readings of every time.
    """

    data: str = "wikitext"
    test: str | None = None
    data_name: str | None = "wikitext-2-raw-v1"
    window: int = 2048
    num_windows: int = 128
    num_test: int | None = None
    batch_size: int = 4
    seed: int = 0
    tasks: list[str] | None = None
    include_path: str | None = None
    limit: int | None = None
    new_tokens: int = 128
    repeats: int = 10

    @property
    def measured_on(self) -> str:
        """What the test text is called in the table."""
        return "WikiText-2" if self.test is None and self.data == "wikitext" else Path(self.test or self.data).stem

    def require_possible(self) -> None:
        """Refuse numbers below 1."""
        numbers = {"window": self.window, "num_windows": self.num_windows, "batch_size": self.batch_size}
        require_positive(**numbers, num_test=self.num_test, limit=self.limit)

    def chosen_tasks(self) -> list[str]:
        """Names of the tasks, what the harness does not know refused."""
        return chosen_tasks(["paper"] if self.tasks is None else self.tasks, self.include_path)[0]

    def calibration(self, tokenizer: PreTrainedTokenizerBase) -> Batches:
        """Batches that searches measure on."""
        parts: dict[str, Any] = {"name": self.data_name, "split": "train"} if self.data_name else {}
        draw: dict[str, Any] = {"window": self.window, "wanted": self.num_windows, "seed": self.seed}
        return calibration_batches(drawn_windows(self.data, tokenizer, **draw, **parts), self.batch_size)

    def held_out(self, tokenizer: PreTrainedTokenizerBase) -> Batches:
        """Batches of the test text, whose windows do not overlap and leave nothing out but its end."""
        hub = self.test is None and self.data_name
        parts: dict[str, Any] = {"name": self.data_name, "split": "test"} if hub else {}
        windows = token_windows(read_texts(self.test or self.data, **parts), tokenizer, self.window)
        return calibration_batches(windows[: self.num_test], self.batch_size)

    def speed(self, context: int | None) -> dict[str, int]:
        """Sizes of the timings: a prompt of a window, less where the context leaves no room to write behind it."""
        prompt = self.window if context is None else min(self.window, context - self.new_tokens)
        return {"prompt_tokens": prompt, "new_tokens": self.new_tokens, "repeats": self.repeats}


PROTOCOL, LOADING = Protocol(), Loading(dtype="bfloat16")


def paper(
    model: str,
    *,
    output: str,
    methods: list[str | dict[str, Any]] | None = None,
    amount: float = 0.2,
    protocol: Protocol = PROTOCOL,
    loading: Loading = LOADING,
) -> None:
    """Measure what the paper's method and its rivals make of a model, beside what was published.

    Writes OUTPUT/paper.md after every line. A run that was stopped goes on when the same command is given again.

    Args:
        model: A hub name, a folder, a GGUF file, or package:NAME for the GGUF file inside an installed package.
        output: Folder for the table, the plans and the measurements.
        methods: Methods as for `lit-prune compare`, without data and num_windows; by default the paper's, this
            project's with refit, blockpruner, sleb and shortgpt.
        amount: Share of the parameters to remove.
        protocol: What is read and measured.
        loading: How the model is loaded.
    """
    require_writable(output, inside=True)
    require_share(amount)
    protocol.require_possible()
    tasks, lines = protocol.chosen_tasks(), read_lines(methods or METHODS)
    tokenizer = loading.tokenizer(model)
    shape = skeleton(model, trust_remote_code=loading.trust_remote_code)
    speed = protocol.speed(context_length(shape.config))
    require_sizes(speed)
    calibration, held_out = protocol.calibration(tokenizer), protocol.held_out(tokenizer)
    comparison = Comparison(
        {protocol.measured_on: held_out},
        folder=Path(output),
        tasks=partial(
            task_scores, tokenizer=tokenizer, tasks=tasks, include_path=protocol.include_path, limit=protocol.limit
        ),
        speed=speed,
    )
    settings = {**vars(protocol), "tasks": tasks, "dtype": loading.dtype, "device": loading.place}
    settings["test_windows"] = sum(len(batch["input_ids"]) for batch in held_out)
    kept = Results(Path(output) / "results.jsonl", {"lit_prune_paper": 1, **settings})
    published = read_published(sum(parameter.numel() for parameter in shape.parameters()))
    page = ""
    for row in comparison.rows(model, partial(loading.model, model), _entries(lines, calibration), [amount], kept):
        say(f"{row.label}: perplexity {row.perplexities[protocol.measured_on]:.2f}", flush=True)
        own = [found for found in kept.found if found.model == model]
        page = "\n\n".join([paper_table(own, published), _protocol_in_words(settings, speed), ""])
        write_text(Path(output) / "paper.md", page)
    say("\n".join([page, *comparison.impossible]))


def _entries(lines: Sequence[Mapping[str, Any]], calibration: Batches) -> list[Entry]:
    own = ("method", "label")
    source = fingerprint(calibration)
    found = [Entry(DENSE, None, calibration, source)]
    for line in lines:
        method = read_method(line["method"]).with_settings({key: line[key] for key in line if key not in own})
        found.append(Entry(line["label"], method, calibration, source))
    return found


@dataclass(frozen=True)
class Published:
    """A line of a publication: None where it is not known; see the head of published.yaml."""

    parameters: int
    model: str
    method: str
    source: str
    removed: str = DASH
    ppl: float | None = None
    accuracy: float | None = None
    faster: float | None = None


def read_published(num_parameters: int) -> list[Published]:
    """What publications have of models with so many parameters.

    Example:
        >>> [(line.method, line.ppl) for line in read_published(8_030_261_248)]
        [('dense', 6.14), ('blockpruner', 22.36), ('sleb', 13.12)]
    """
    lines = [Published(**line) for line in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))]
    return [line for line in lines if line.parameters == num_parameters]


def paper_table(rows: Sequence[Result], published: Sequence[Published]) -> str:
    """A Markdown table of what was measured, each line followed by what was published of the same method."""
    tasks = list(rows[0].tasks)
    lines: list[tuple[str, ...]] = []
    left = list(published)
    for row in rows:
        lines.append(_measured(row))
        same = [line for line in left if line.method == row.label]
        left = [line for line in left if line not in same]
        lines += [_of_publication(line, len(tasks)) for line in same]
    lines += [_of_publication(line, len(tasks)) for line in left]
    heads = [
        "line",
        "parameters",
        "removed",
        f"ppl {next(iter(rows[0].perplexities))}",
        *tasks,
        "mean of tasks",
        "prefill",
        "decode",
    ]
    return markdown_table([*heads, "faster, as published", "search, minutes", "search, passes"], lines)


def _measured(row: Result) -> tuple[str, ...]:
    searched = (f"{row.seconds / 60:,.1f}", f"{row.passes:,.1f}") if row.amount else (DASH, DASH)
    return (
        row.label,
        f"{row.num_parameters:,}",
        f"{row.share_removed:.1%}",
        f"{next(iter(row.perplexities.values())):.2f}",
        *(f"{score.value:.3f}" for score in row.tasks.values()),
        DASH if math.isnan(row.mean_accuracy) else f"{row.mean_accuracy:.3f}",
        f"{row.prefill:.2f}",
        f"{row.decode:.2f}",
        DASH,
        *searched,
    )


def _of_publication(line: Published, num_tasks: int) -> tuple[str, ...]:
    def known(value: float | None, form: str) -> str:
        return DASH if value is None else f"{value:{form}}"

    return (
        f"{line.method}, published for {line.model} ({line.source})",
        DASH,
        line.removed,
        known(line.ppl, ".2f"),
        *(num_tasks * [DASH]),
        known(line.accuracy, ".3f"),
        DASH,
        DASH,
        known(line.faster, ".2f"),
        DASH,
        DASH,
    )


def _protocol_in_words(settings: Mapping[str, Any], speed: Mapping[str, int]) -> str:
    def parts() -> Iterator[str]:
        yield f"{settings['num_windows']} windows of {settings['window']} tokens of {settings['data']} for the search"
        yield f"{settings['test_windows']} of the test text"
        if settings["tasks"]:
            yield f"{settings['limit'] or 'all'} items of every task"
        yield f"prefill of 1 x {speed['prompt_tokens']} tokens, {speed['new_tokens']} written behind them"
        yield f"{settings['dtype']}, {settings['device']}"

    return markdown_line(f"{'; '.join(parts())}. Speeds are how many times as fast as the dense model.")


main = partial(run, paper)

if __name__ == "__main__":
    sys.exit(main())
