"""`lit-prune analyse`: what every sublayer does to the residual stream and is worth, of one model or several."""

from __future__ import annotations

from functools import partial

from lit_prune.commands.arguments import call, model_names, require_writable
from lit_prune.commands.options import Loading, Sample
from lit_prune.files import clean, say

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from lit_prune.evaluation import Analysis

SAMPLE, LOADING = Sample(window=256, num_windows=8, batch_size=1), Loading()


def analyse(
    models: str,
    *,
    output: str,
    sample: Sample = SAMPLE,
    impact: bool = True,
    loading: Loading = LOADING,
    layout: str | None = None,
) -> None:
    """Draw what every sublayer does to the residual stream, what it is worth, and how the logits come about.

    Writes OUTPUT/analysis.json, analysis.md and a picture for each topic, with models side by side on the same scales.
    The reference page "What the sublayers do" says how to read them.

    Args:
        models: One or more, separated by commas: hub names, folders (pruned too), GGUF files, or package:NAME.
        output: Folder for tables and pictures.
        sample: The text that is measured on.
        impact: Whether to measure RI and NRI, a what-if loss for every sublayer; all else takes one pass.
        loading: How the models are loaded.
        layout: YAML or JSON file that describes blocks which are not understood; the reference page of architectures
            has its fields.
    """
    from lit_prune.data import calibration_batches
    from lit_prune.evaluation import analyse as measure
    from lit_prune.measure import WhatIf
    from lit_prune.pruning import progress_bar
    from lit_prune.report import write_analysis
    from lit_prune.surgery import require_understood

    require_writable(output, inside=True)
    names, device = model_names(models), loading.place
    sample.require_possible()
    settings = {"data": sample.source, "window": sample.window, "num_windows": sample.num_windows}
    settings |= {"dtype": loading.dtype, "device": device, "seed": sample.seed}
    settings |= sample.manner
    found: list[Analysis] = []
    drawn = {name: sample.checked(sample.windows(loading.tokenizer(name))) for name in names}
    for name, windows in drawn.items():
        model = loading.model(name, layout)
        require_understood(model)
        with progress_bar(f"analysing {clean(name)}") as bar:
            what_if = WhatIf(model, calibration_batches(windows, sample.batch_size), progress=bar)
            found.append(measure(what_if, impact=impact, name=name))
        del model, what_if
        say(_said(found[-1]), flush=True)
        files = write_analysis(output, found, settings)
    say("written: " + ", ".join(map(str, files)))


run = partial(call, analyse)


def _said(found: Analysis) -> str:
    told = f"{found.model}: loss {found.loss:.4f} nats"
    impacts = {sublayer.name: sublayer.ri for sublayer in found.sublayers if sublayer.ri is not None}
    figures = impacts or {sublayer.name: 1 - sublayer.similarity for sublayer in found.sublayers}
    least = min(figures, key=lambda name: figures[name], default=None)
    return told if least is None else f"{told}, least {'impact' if impacts else 'change'}: {least}"
