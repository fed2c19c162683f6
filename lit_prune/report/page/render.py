"""Sources in, one HTML page out: no scripts, no network, everything that others wrote escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lit_prune.files import clean
from lit_prune.report.analyses import analysis_pieces
from lit_prune.report.comparisons import comparison_pieces
from lit_prune.report.evaluations import Match, evaluation_pieces
from lit_prune.report.page.folders import Sources, read_sources
from lit_prune.report.pieces import Piece
from lit_prune.report.runs import overview_pieces, run_pieces

PAGE = "page.html.jinja"


def report_page(folders: Sequence[str | Path], *, trust_remote_code: bool = False) -> str:
    """Write one HTML page about runs.

    Args:
        folders: Folders that lit-prune has written: pruned models, trainings, evaluations, comparisons, analyses.
            Evaluations are put to the models that they measured, by the models' folders.
        trust_remote_code: Run code that comes with a model, to find out how it is loaded.

    Raises:
        LitPruneError: A folder holds nothing of lit-prune, or a file in it is damaged.
    """
    return render(read_sources(folders), trust_remote_code=trust_remote_code)


def render(sources: Sources, *, trust_remote_code: bool = False) -> str:
    """Write the page about what was read.

    Args:
        sources: What `read_sources` found.
        trust_remote_code: Run code that comes with a model, to find out how it is loaded.
    """
    models = sources.models
    found = [sources.matches(run) for run in models]
    return (
        _environment()
        .get_template(PAGE)
        .render(
            version=version("lit-prune"),
            title=", ".join(sources.names),
            several=len(models) + len(sources.comparisons) > 1,
            overview=list(overview_pieces(models, drawn=not sources.evaluations)) if len(models) > 1 else [],
            runs=[
                (run.name, list(run_pieces(run, own, trust_remote_code=trust_remote_code)))
                for run, own in zip(models, found, strict=True)
            ],
            evaluations=list(_evaluations(sources, [match for own in found for match in own])),
            comparisons=[(comparison.name, list(comparison_pieces(comparison))) for comparison in sources.comparisons],
            analyses=[(analysis.name, list(analysis_pieces(analysis))) for analysis in sources.analyses],
        )
    )


def _evaluations(sources: Sources, found: Iterable[Match]) -> Iterator[tuple[str, list[Piece]]]:
    """Names and pieces; a pair that a run shows whole is not shown twice."""
    shown: dict[str, set[str]] = defaultdict(set)
    for match in found:
        shown[match.evaluation.name] |= {row.model for row in (match.before, match.after) if row is not None}
    bases = {run.plan.model.name for run in sources.models if run.plan}
    base = bases.pop() if len(bases) == 1 else ""
    for evaluation in sources.evaluations:
        measured = {row.model for row in evaluation.rows}
        answering = {model for dialogue in evaluation.answers for model in dialogue.answers}
        new_answers = not answering <= shown[evaluation.name]
        if len(evaluation.rows) > 2 or new_answers or not measured <= shown[evaluation.name]:
            yield evaluation.name, list(evaluation_pieces(evaluation, base, with_answers=new_answers))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lit_prune.report.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_readable,
    )
    environment.filters["code"] = _code
    return environment


def _readable(value: Any) -> Any:
    """Text without characters that no page may hold."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _code(text: str) -> Markup:
    """Plain text whose parts between backticks are code, as in Markdown."""
    parts = [escape(clean(part)) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part for index, part in enumerate(parts)
    )
