"""`lit-prune evaluate`: perplexity on texts and accuracy on tasks, of one model or several, beside a reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_prune.commands.arguments import call, default_device, model_names, text_labels
from lit_prune.data import calibration_batches, drawn_windows
from lit_prune.evaluation import Measured, perplexity, require_tasks, task_scores
from lit_prune.models import load, load_tokenizer
from lit_prune.report import evaluation_markdown
from lit_prune.writing import to_json, write_text


def run(verb: str, arguments: Sequence[str]) -> None:
    """The verb's entry."""
    call(evaluate, verb, arguments, positionals=["models"])


def evaluate(
    models: str,
    *,
    against: str | None = None,
    texts: list[str] | None = None,
    window: int = 256,
    num_windows: int = 24,
    batch_size: int = 4,
    tasks: list[str] | None = None,
    include_path: str | None = None,
    limit: int | None = None,
    output: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> None:
    """Measure perplexity on texts and accuracy on tasks, of models beside a reference, with standard errors.

    Windows of a text do not overlap; perplexity is exp of the mean loss of all their tokens but the first, in float32.

    Args:
        models: One or more, separated by commas: hub names, folders (pruned too), GGUF files, or package:NAME.
        against: The reference, such as the dense model; differences from it are shown, bold where they are more than
            1.96 standard errors.
        texts: Where perplexity is measured - builtin, .txt or .jsonl files, folders, hub data sets; builtin by default.
        window: Tokens in a window.
        num_windows: Windows of each text, drawn at random; all that it has where it has fewer.
        batch_size: Windows in a batch.
        tasks: Tasks of lm-evaluation-harness (needs the extra eval).
        include_path: Folder with further task files.
        limit: Items of each task; all by default.
        output: Folder for evaluation.md and evaluation.json.
        dtype: Of the weights: float32, bfloat16, float16 or auto.
        device: Such as cuda:0 or cpu; a GPU where there is one.
        seed: Decides which windows are drawn.
        trust_remote_code: Run code that comes with the model.
    """
    names = model_names(models)
    names = [*([] if against is None else [against]), *(each for each in names if each != against)]
    require_tasks(tasks or (), include_path)
    sources = ["builtin"] if texts is None else texts
    labels = text_labels(sources)
    device = default_device(device)
    rows: list[Measured] = []
    for name in names:
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        batches = {
            label: calibration_batches(
                drawn_windows(text, tokenizer, window=window, wanted=1, seed=seed)[:num_windows], batch_size
            )
            for label, text in zip(labels, sources, strict=True)
        }
        model = load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        found = {label: perplexity(model, each) for label, each in batches.items()}
        options: dict[str, Any] = {"include_path": include_path, "limit": limit}
        scores = task_scores(model, tokenizer, tasks, **options) if tasks else {}
        num_parameters = sum(each.numel() for each in model.parameters())
        rows.append(Measured(name, num_parameters, found, scores))
        said = ", ".join(f"{label} {each.ppl:.2f}" for label, each in found.items())
        print(f"{name}: perplexity {said}", flush=True)
    protocol = f"Perplexity: windows of {window} tokens, {num_windows} of a text, {dtype}, {device}."
    page = f"{evaluation_markdown(rows, compared=against is not None)}\n{protocol}\n"
    print(f"\n{page}")
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"window": window, "num_windows": num_windows, "dtype": dtype, "seed": seed, "limit": limit}
        settings["against"] = against
        data = {"settings": {**settings, "texts": sources}, "models": [to_json(asdict(each)) for each in rows]}
        write_text(folder / "evaluation.json", json.dumps(data, indent=2, allow_nan=False) + "\n")
        write_text(folder / "evaluation.md", page)
        print(f"written: {folder / 'evaluation.md'}")
