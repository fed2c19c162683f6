"""An analysis as a folder: one Markdown page, all numbers as JSON, and a picture for each topic."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_prune.evaluation import Analysis
from lit_prune.files import markdown_inline, markdown_line, markdown_table, to_json, write_text
from lit_prune.report.analysis import analysis_figures
from lit_prune.report.score_map import save_figure

DATA_FILE, PAGE_FILE = "analysis.json", "analysis.md"


def write_analysis(
    folder: str | Path,
    analyses: Sequence[Analysis],
    settings: Mapping[str, Any],
    *,
    shown: Sequence[Analysis] | None = None,
) -> list[Path]:
    """Write `analysis.json`, `analysis.md` and the pictures; what stood there of these is replaced.

    Args:
        folder: Made where it is not there.
        analyses: One or more.
        settings: How they were measured, for readers.
        shown: Those in the pictures, side by side; all when None.

    Returns:
        The files.
    """
    folder = Path(folder)
    data = {"settings": dict(settings), "models": [asdict(each) for each in analyses]}
    written = [
        write_text(folder / DATA_FILE, json.dumps(to_json(data), indent=2, allow_nan=False) + "\n"),
        write_text(folder / PAGE_FILE, analysis_markdown(analyses)),
    ]
    figures = analysis_figures(shown or analyses)
    return [*written, *(save_figure(each, folder / f"{name}.png") for name, each in figures.items())]


def analysis_markdown(analyses: Sequence[Analysis]) -> str:
    """Tables of sublayers and depths, those of each model below its name."""
    return "\n".join(line for each in analyses for line in _lines(each))


def _lines(analysis: Analysis) -> Iterator[str]:
    yield f"## {markdown_inline(analysis.model)}\n"
    yield (
        f"{analysis.num_parameters:,} parameters; {len(analysis.sublayers)} of {2 * analysis.num_blocks} sublayers; "
        f"loss {analysis.loss:.4f} nats over {analysis.num_predicted:,} predicted tokens.\n"
    )
    yield from (f"{markdown_line(note)}\n" for note in analysis.notes)
    paths = {each.name: each for each in analysis.paths}
    rows = [
        [
            each.name,
            f"{each.input_norm:.4g}",
            f"{each.output_norm:.4g}",
            f"{each.similarity:.4f}",
            _number(each.ri),
            _number(each.nri),
            f"{paths[each.name].margin:+.3f}" if paths else "",
            f"{paths[each.name].share:.2%}" if paths else "",
        ]
        for each in analysis.sublayers
    ]
    rows += [
        [name, *[""] * 5, f"{each.margin:+.3f}", f"{each.share:.2%}"] for name, each in paths.items() if "." not in name
    ]
    heads = ("sublayer", "input norm", "output norm", "cosine", "RI", "NRI", "logit above the mean", "share")
    yield markdown_table(heads, rows)
    yield ""
    depths = [
        [each.name, f"{each.norm:.4g}", f"{each.loss:.4f}", f"{each.agreement:.1%}", f"{each.kl:.4f}"]
        for each in analysis.depths
    ]
    yield markdown_table(("stream behind", "norm", "loss", "same top token", "KL"), depths)
    yield ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if math.isfinite(value) else "infinite"
