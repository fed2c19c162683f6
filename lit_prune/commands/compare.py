"""`lit-prune compare`: methods of the field on the same model, tokens and budgets, in one table from one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from lit_prune.commands.arguments import call, model_names, require_writable, text_labels
from lit_prune.commands.checks import require_texts
from lit_prune.commands.options import Loading, Mixture, Sample
from lit_prune.errors import LitPruneError
from lit_prune.files import file_name, say, write_text
from lit_prune.plan import Method, method_names, read_method
from lit_prune.searches import require_share

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lit_prune.evaluation import Batches, Entry, Result

SAMPLE, LOADING, REFIT = Sample(window=256, num_windows=8, batch_size=1), Loading(), Mixture()
OWN = ("method", "label", "data", "num_windows")
"""Settings of an entry that are not the method's."""


def compare(
    models: str,
    *,
    output: str,
    methods: list[str | dict[str, Any]] | None = None,
    amounts: list[float] | None = None,
    sample: Sample = SAMPLE,
    refit: Mixture = REFIT,
    unseen: list[str] | None = None,
    num_unseen: int = 24,
    draws: int = 1,
    tasks: list[str] | None = None,
    include_path: str | None = None,
    limit: int | None = None,
    speed: dict[str, int] | None = None,
    loading: Loading = LOADING,
) -> None:
    """Compare pruning methods on the same models, tokens and budgets, in one table.

    Writes OUTPUT/comparison.md, comparison.csv, comparison.png (and .svg, .pdf) and removed-*.png after every row, the
    plans and the measurements. A run that was stopped goes on when the same command is given again.

    Args:
        models: One or more, separated by commas: hub names, folders, GGUF files, or package:NAME for the GGUF file
            inside an installed package.
        output: Folder for the tables, pictures and plans.
        methods: What is compared: names as for prune --method, wanda-2:4 for semi-structured sparsity, or mappings
            with a method and what is changed of it, such as '{method: nri, label: nri attention, granularity:
            attention}'; data and num_windows may be changed as well. All methods by default. dense is always there.
        amounts: Shares of the parameters to remove; [0.1, 0.2] by default.
        sample: The calibration text; a batch is the least that a search can screen on.
        refit: The text that refit solves for.
        unseen: Texts that perplexity is measured on, in windows that no method sees; data by default.
        num_unseen: Windows of every text that perplexity is measured on.
        draws: Number of times that every method searches, on other windows each time; the table has their means, and
            what is worst.
        tasks: Tasks of lm-evaluation-harness to measure accuracy on (needs the extra eval).
        include_path: Folder with further task files.
        limit: Items of every task; all by default.
        speed: Options of the measurement of speed - prompt_tokens, new_tokens, batch, repeats, warmup.
        loading: How the models are loaded.
    """
    from lit_prune.data import calibration_batches, interleaved
    from lit_prune.evaluation import DENSE, Comparison, Results, averaged, require_sizes, require_tasks, task_scores
    from lit_prune.loading.models import skeleton
    from lit_prune.report import comparison_markdown

    require_writable(output, inside=True)
    names = model_names(models)
    lines = read_lines(method_names() if methods is None else methods)
    shares = sorted(amounts or [0.1, 0.2])
    for share in shares:
        require_share(share)
    require_tasks(tasks or (), include_path)
    require_sizes(speed or {})
    refit = refit.beside(sample.texts)
    refit.require_possible()
    sample.require_possible(num_unseen=num_unseen, limit=limit, draws=draws)
    texts = unseen or sample.texts
    labels = text_labels(texts)
    settings = {"data": sample.source, "unseen": texts, "window": sample.window, "num_windows": sample.num_windows}
    settings |= {"num_unseen": num_unseen, "batch_size": sample.batch_size, "seed": sample.seed, "tasks": tasks}
    settings |= {"limit": limit, "speed": speed, "dtype": loading.dtype, "device": loading.place}
    settings |= sample.manner
    # Of every text the first windows are for calibration, as many as any line asks for; then come those that none sees,
    # and those of further draws.
    kinds = [replace(sample, data=line.get("data", sample.data)) for line in lines]
    asked = [line.get("num_windows", sample.num_windows) for line in lines]
    most = max(sample.share(sample.num_windows), *map(Sample.share, kinds, asked))
    settings |= {"calibration_windows": most}  # of a text: behind them come those that none sees
    calibrating = {text for own in (sample, *kinds) for text in own.texts}
    require_texts(sorted(calibrating))
    folder = Path(output)
    kept = Results(folder / "results.jsonl", {"lit_prune_comparison": 1, **settings})
    notes: list[str] = []
    tokenizers = {name: loading.tokenizer(name) for name in names}
    for name, tokenizer in tokenizers.items():

        @cache
        def drawn(text: str, tokenizer: PreTrainedTokenizerBase = tokenizer) -> Tensor:
            more = (draws - 1) * most if text in calibrating else 0
            return replace(sample, data=text).windows(tokenizer, wanted=most + num_unseen + more)

        @cache
        def fitted_on(name: str = name, tokenizer: PreTrainedTokenizerBase = tokenizer) -> Batches:
            config = skeleton(name, trust_remote_code=loading.trust_remote_code).config
            return refit.batches(tokenizer, config, partial(loading.model, name))

        def calibration(line: Mapping[str, Any], draw: int) -> Tensor:
            kinds = replace(sample, data=line.get("data", sample.data))
            number = line.get("num_windows", sample.num_windows)
            first = draw * most + (num_unseen if draw else 0)
            own = [drawn(text)[first : first + kinds.share(number)] for text in kinds.texts]
            return sample.checked(interleaved(own)[:number])

        dense = {"method": DENSE, "label": DENSE}
        entries = [
            _entry(line, calibration(line, draw), draw, sample, fitted_on)
            for draw in range(draws)
            for line in ([] if draw else [dense]) + lines
        ]
        windows = {label: drawn(text)[most : most + num_unseen] for label, text in zip(labels, texts, strict=True)}
        comparison = Comparison(
            {label: calibration_batches(rows, sample.batch_size) for label, rows in windows.items()},
            tasks=partial(task_scores, tokenizer=tokenizer, tasks=tasks or (), include_path=include_path, limit=limit),
            speed=speed or {},
            folder=folder,
        )
        for row in comparison.rows(name, partial(loading.model, name), entries, shares, kept):
            say(_said(row), flush=True)
            _write(folder, kept.found, notes, settings)
        notes += comparison.impossible
        _write(folder, kept.found, notes, settings)
    best = "\n".join(best_in_words(averaged(kept.found)))
    say(f"\n{comparison_markdown(kept.found, notes, settings)}\n{best}\nwritten: {folder / 'comparison.md'}")


run = partial(call, compare, nested=["refit"])


def _line(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """A method's name, or a mapping, as a mapping with a label."""
    line = {"method": spec} if isinstance(spec, str) else dict(spec)
    if "method" not in line:
        raise LitPruneError(f"a line of the comparison needs a method; found {line}")
    return {"label": line["method"], **line}


def read_lines(specs: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turn names and mappings into mappings with a label, checked before anything is loaded."""
    from lit_prune.evaluation import WANDA, wanda_sparsifier
    from lit_prune.pruning import Pruner

    lines = [_line(spec) for spec in specs]
    labels = [line["label"] for line in lines]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise LitPruneError(f"two lines are called {twice[0]!r}; give one of them another label")
    for line in lines:
        if line["method"] == WANDA:
            wanda_sparsifier()
        else:
            Pruner.require_known(_method(line))
    return lines


def _method(line: Mapping[str, Any]) -> Method:
    return read_method(line["method"]).with_settings({key: line[key] for key in line if key not in OWN})


def _entry(
    line: Mapping[str, Any], windows: Tensor, draw: int, sample: Sample, fitted_on: Callable[[], Batches]
) -> Entry:
    from lit_prune.data import calibration_batches, fingerprint
    from lit_prune.evaluation import DENSE, WANDA, Entry
    from lit_prune.healing import create_compensation, wants_dense

    batches = calibration_batches(windows, sample.batch_size)
    method = None if line["method"] in (DENSE, WANDA) else _method(line)
    own = Entry(line["label"], method, batches, fingerprint(batches), draw=draw)
    if method is None or not wants_dense(create_compensation(method.compensate)):
        return own
    return replace(own, text=fitted_on(), text_source=fingerprint(fitted_on()))


def best_in_words(rows: Sequence[Result]) -> Iterator[str]:
    """Which method leaves the least perplexity of each model at each amount, on each text."""
    if len({row.label for row in rows if row.amount}) == 1:  # there is nothing to choose from
        return
    groups: dict[tuple[str, float, str], list[Result]] = {}
    for row in rows:
        for text in row.perplexities:
            if row.amount:
                groups.setdefault((row.model, row.amount, text), []).append(row)
    for (model, amount, text), own in groups.items():
        best = min(own, key=lambda row: row.perplexities[text])
        yield f"least perplexity of {model} less {amount:.0%}: {best.perplexities[text]:.2f} on {text}, by {best.label}"


def _said(row: Result) -> str:
    text, ppl = next(iter(row.perplexities.items()))
    amount = f" {row.amount:.0%}" if row.amount else ""
    amount += f", draw {row.draw + 1}" if row.draw else ""
    return f"{row.model}, {row.label}{amount}: perplexity {ppl:.2f} on {text}, {row.passes:,.1f} passes"


def _write(folder: Path, rows: Sequence[Result], notes: Sequence[str], settings: Mapping[str, Any]) -> None:
    from lit_prune.report import comparison_csv, comparison_figure, comparison_markdown, removal_figure, save_figure

    write_text(folder / "comparison.md", comparison_markdown(rows, notes, settings))
    write_text(folder / "comparison.csv", comparison_csv(rows))
    if any(row.amount for row in rows):
        figure = comparison_figure(rows)
        for ending in ("png", "svg", "pdf"):
            save_figure(figure, folder / f"comparison.{ending}")
    for model in dict.fromkeys(row.model for row in rows):
        for amount in sorted({row.amount for row in rows if row.amount}):
            own = [row for row in rows if row.model == model and row.amount == amount]
            if own:
                save_figure(removal_figure(own), folder / f"removed-{file_name(model)}-{amount:g}.png")
