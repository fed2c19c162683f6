"""Analyses: a folder with a Markdown page, all numbers as JSON and the pictures; and the section of the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_prune.errors import DataError
from lit_prune.evaluation import Analysis
from lit_prune.files import markdown_inline, markdown_line, read_json, write_json, write_text
from lit_prune.report.analysis_pictures import TITLES, analysis_figures
from lit_prune.report.drawing import picture, save_figure
from lit_prune.report.evaluations import require_rows, settings_line
from lit_prune.report.pieces import Piece, Table

ANALYSIS_FILE, PAGE_FILE = "analysis.json", "analysis.md"
SUBLAYERS = ("sublayer", "input norm", "output norm", "cosine", "RI", "NRI", "logit above the mean", "share")
DEPTHS = ("stream behind", "norm", "loss", "same top token", "KL")


@dataclass(frozen=True)
class AnalysisRun:
    """What `lit-prune analyse` left: the folder as it was given, settings, models' names, PNG files by their titles."""

    name: str
    settings: Mapping[str, Any]
    models: tuple[str, ...]
    pictures: Mapping[str, bytes]


def write_analysis(
    folder: str | Path,
    analyses: Sequence[Analysis],
    settings: Mapping[str, Any],
    *,
    shown: Sequence[Analysis] | None = None,
) -> list[Path]:
    """Write `analysis.json`, `analysis.md` and the pictures; what stood there of these is replaced.

    Args:
        folder: Where the files go; it is made where it is not there.
        analyses: One analysis or more.
        settings: How they were measured, for readers.
        shown: The analyses in the pictures, side by side; all when None.

    Returns:
        The files.
    """
    folder = Path(folder)
    data = {"settings": dict(settings), "models": [asdict(analysis) for analysis in analyses]}
    written = [
        write_json(folder / ANALYSIS_FILE, data),
        write_text(folder / PAGE_FILE, analysis_markdown(analyses)),
    ]
    figures = analysis_figures(shown or analyses)
    return [*written, *(save_figure(figure, folder / f"{name}.png") for name, figure in figures.items())]


def read_analysis(name: str, folder: Path) -> AnalysisRun:
    """Read what `write_analysis` left; a file that is damaged or holds no model is a DataError."""
    path = folder / ANALYSIS_FILE
    try:
        data = read_json(path.read_text(encoding="utf-8"))
        models = tuple(str(model["model"]) for model in data["models"])
        files = {title: folder / f"{file}.png" for file, title in TITLES.items()}
        pictures = {title: file.read_bytes() for title, file in files.items() if file.is_file()}
        found = AnalysisRun(name, dict(data["settings"]), models, pictures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read the analysis {path}: {error!r}; make it again") from error
    require_rows(models, path)
    return found


def analysis_pieces(analysis: AnalysisRun) -> Iterator[Piece]:
    """The section of the page: pictures one below the other."""
    yield Piece("note", f"{', '.join(analysis.models)}. {settings_line(analysis.settings)}")
    yield from (picture(data, f"{title}, block by block") for title, data in analysis.pictures.items())


def analysis_markdown(analyses: Sequence[Analysis]) -> str:
    """Write tables of sublayers and depths, those of each model below its name.

    Args:
        analyses: One analysis or more.
    """
    return "\n".join(line for analysis in analyses for line in _lines(analysis))


def _lines(analysis: Analysis) -> Iterator[str]:
    yield f"## {markdown_inline(analysis.model)}\n"
    yield (
        f"{analysis.num_parameters:,} parameters; {len(analysis.sublayers)} of {2 * analysis.num_blocks} sublayers; "
        f"loss {analysis.loss:.4f} nats over {analysis.num_predicted:,} predicted tokens.\n"
    )
    yield from (f"{markdown_line(note)}\n" for note in analysis.notes)
    yield Table.of(SUBLAYERS, _sublayer_rows(analysis)).markdown
    yield ""
    depths = [
        [depth.name, f"{depth.norm:.4g}", f"{depth.loss:.4f}", f"{depth.agreement:.1%}", f"{depth.kl:.4f}"]
        for depth in analysis.depths
    ]
    yield Table.of(DEPTHS, depths).markdown
    yield ""


def _sublayer_rows(analysis: Analysis) -> Iterator[list[str]]:
    """A row for each sublayer, then those paths that are of none."""
    paths = {path.name: [f"{path.margin:+.3f}", f"{path.share:.2%}"] for path in analysis.paths}
    for sublayer in analysis.sublayers:
        norms = [f"{sublayer.input_norm:.4g}", f"{sublayer.output_norm:.4g}", f"{sublayer.similarity:.4f}"]
        impact = [_number(sublayer.ri), _number(sublayer.nri)]
        yield [sublayer.name, *norms, *impact, *(paths[sublayer.name] if paths else ["", ""])]
    yield from ([name, *[""] * 5, *cells] for name, cells in paths.items() if "." not in name)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if math.isfinite(value) else "infinite"
