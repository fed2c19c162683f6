"""`lit-prune analyse`: what every sublayer does to the residual stream and is worth, of one model or several."""

from __future__ import annotations

from functools import partial

from lit_prune.commands.arguments import call, default_device, model_names, require_writable
from lit_prune.data import calibration_batches, drawn_windows, require_positive
from lit_prune.evaluation import Analysis
from lit_prune.evaluation import analyse as measure
from lit_prune.files import clean, say
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.measure import WhatIf, progress_bar, require_understood
from lit_prune.report import write_analysis


def analyse(
    models: str,
    *,
    output: str,
    data: str = "builtin",
    window: int = 256,
    num_windows: int = 8,
    batch_size: int = 1,
    impact: bool = True,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    layout: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Draw what every sublayer does to the residual stream, what it is worth, and how the logits come about.

    Writes OUTPUT/analysis.json, analysis.md and a picture for each topic, with models side by side on the same scales:
    docs/analysis.md says how to read them.

    Args:
        models: One or more, separated by commas: hub names, folders (pruned too), GGUF files, or package:NAME.
        output: Folder for tables and pictures.
        data: Text as for prune.
        window: Tokens in a window.
        num_windows: Windows, drawn from the text.
        batch_size: Windows in a batch; the states of one batch are held at a time.
        impact: Whether to measure RI and NRI, a what-if loss for every sublayer; all else takes one pass.
        dtype: Of the weights: float32, bfloat16, float16 or auto.
        device: Such as cuda:0 or cpu; a GPU where there is one.
        seed: Decides which windows are drawn.
        layout: YAML or JSON file that describes blocks which are not understood: see docs/architectures.md.
        trust_remote_code: Run code that comes with the model.
    """
    require_writable(output, inside=True)
    names, device = model_names(models), default_device(device)
    require_positive(num_windows=num_windows, batch_size=batch_size)
    settings = {"data": data, "window": window, "num_windows": num_windows, "dtype": dtype, "device": device}
    settings |= {"seed": seed}
    found: list[Analysis] = []
    for name in names:
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        windows = drawn_windows(data, tokenizer, window=window, wanted=num_windows, seed=seed)
        model = load(name, dtype=dtype, device=device, layout=layout, trust_remote_code=trust_remote_code)
        require_understood(model)
        with progress_bar(f"analysing {clean(name)}") as bar:
            what_if = WhatIf(model, calibration_batches(windows, batch_size), progress=bar)
            found.append(measure(what_if, impact=impact, name=name))
        del model, what_if
        say(_said(found[-1]), flush=True)
        files = write_analysis(output, found, settings)
    say("written: " + ", ".join(map(str, files)))


run = partial(call, analyse)


def _said(found: Analysis) -> str:
    least = min(found.sublayers, key=lambda each: each.ri if each.ri is not None else 1 - each.similarity, default=None)
    words = "" if least is None else f", least {'impact' if least.ri is not None else 'change'}: {least.name}"
    return f"{found.model}: loss {found.loss:.4f} nats{words}"
