"""Sources in, one HTML page out: no scripts, no network, everything that others wrote escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lit_prune.files import clean
from lit_prune.report.page.matching import Match, matches
from lit_prune.report.page.sources import Evaluation, Sources, read_sources
from lit_prune.report.page.tables import runs_table
from lit_prune.report.page.views import AnalysisView, ComparisonView, EvaluationView, RunView, overview_figure

PAGE = "page.html.jinja"


def report_page(folders: Sequence[str | Path], *, trust_remote_code: bool = False) -> str:
    """Write one HTML page about runs.

    Args:
        folders: That lit-prune has written: pruned models, trainings, evaluations, comparisons,
            analyses. Evaluations are put to
            the models that they measured, by the models' folders.
        trust_remote_code: Run code that comes with a model, to find out how it is loaded.

    Raises:
        LitPruneError: A folder holds nothing of lit-prune, or a file in it is damaged.
    """
    return render(read_sources(folders), trust_remote_code=trust_remote_code)


def render(sources: Sources, *, trust_remote_code: bool = False) -> str:
    """The page about what was read.

    Args:
        sources: What it shows.
        trust_remote_code: As for `report_page`.
    """
    found = [matches(run, sources.models, sources.evaluations) for run in sources.models]
    shown = _models_shown(found)
    bases = {run.plan.model.name for run in sources.models if run.plan}
    base = bases.pop() if len(bases) == 1 else ""
    several = len(sources.models) + len(sources.comparisons) > 1
    views: dict[str, Any] = {
        "version": version("lit-prune"),
        "title": ", ".join(sources.names),
        "several": several,
        "overview": runs_table(sources.models) if len(sources.models) > 1 else None,
        "overview_figure": overview_figure(sources) if len(sources.models) > 1 else None,
        "runs": [
            RunView(run, each, trust_remote_code=trust_remote_code)
            for run, each in zip(sources.models, found, strict=True)
        ],
        # A pair that a run shows whole is not shown twice.
        "evaluations": [
            EvaluationView(each, base, with_answers=not _answering(each) <= shown[each.name])
            for each in sources.evaluations
            if len(each.rows) > 2 or not {row.model for row in each.rows} | _answering(each) <= shown[each.name]
        ],
        "comparisons": [ComparisonView(each) for each in sources.comparisons],
        "analyses": [AnalysisView(each) for each in sources.analyses],
    }
    return _environment().get_template(PAGE).render(views)


def _models_shown(found: Sequence[Sequence[Match]]) -> dict[str, set[str]]:
    """By the name of an evaluation, the models whose figures and answers runs show."""
    shown: dict[str, set[str]] = defaultdict(set)
    for match in (match for each in found for match in each):
        shown[match.evaluation.name] |= {row.model for row in (match.before, match.after) if row is not None}
    return shown


def _answering(evaluation: Evaluation) -> set[str]:
    return {model for each in evaluation.answers for model in each.answers}


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
    parts = [escape(clean(each)) for each in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part for index, part in enumerate(parts)
    )
