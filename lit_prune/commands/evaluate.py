"""`lit-prune evaluate`: perplexity on texts, accuracy on tasks, answers to questions, of models beside a reference."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_prune.commands.arguments import call, default_device, model_names, require_writable, text_labels
from lit_prune.commands.conversation import Conversation
from lit_prune.data import calibration_batches, drawn_windows, require_positive
from lit_prune.errors import LitPruneError
from lit_prune.evaluation import Measured, Prompt, chosen_tasks, perplexity, read_prompts, task_scores
from lit_prune.files import say, to_json, write_text
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.measure import IGNORED, hint_if_implausible
from lit_prune.report import evaluation_markdown, signs_markdown
from lit_prune.surgery import removed_sublayers


def evaluate(
    models: str,
    *,
    against: str | None = None,
    texts: list[str] | None = None,
    window: int = 256,
    stride: int | None = None,
    num_windows: int = 24,
    batch_size: int = 4,
    tasks: list[str] | None = None,
    include_path: str | None = None,
    limit: int | None = None,
    run_code: bool = False,
    prompts: str | None = None,
    num_prompts: int | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    output: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> None:
    """Measure perplexity on texts and accuracy on tasks, of models beside a reference, with standard errors.

    Perplexity is exp of the mean loss in float32 of all tokens of the windows but the first of each, or with a stride
    of the last so many of each.
    With prompts, the models answer them as well: side by side in OUTPUT/answers.md, for FastChat's llm_judge in
    OUTPUT/model_answer and for alpaca_eval in OUTPUT/alpaca_eval, with signs of damage that need no judge.

    Args:
        models: One or more, separated by commas: hub names, folders (pruned too), GGUF files, or package:NAME.
        against: The reference, such as the dense model; differences from it are shown, bold where they are more than
            1.96 standard errors.
        texts: Where perplexity is measured - builtin, files as for prune, folders, hub data sets; builtin by default.
        window: Tokens in a window.
        stride: Tokens from one window to the next; what a window shares with the one before is context that does not
            count. Windows do not overlap by default.
        num_windows: Windows of each text, drawn at random; all that it has where it has fewer.
        batch_size: Windows, requests or prompts in a batch.
        tasks: Tasks of lm-evaluation-harness (needs the extra eval); paper stands for PIQA, WinoGrande, HellaSwag and
            ARC, hard for MMLU, GSM8K, HumanEval, AGIEval, LAMBADA and SQuAD completion.
        include_path: Folder with further task files; paper and hard then mean those that are there.
        limit: Items of each task; all by default.
        run_code: Whether tasks such as humaneval may run what the models write.
        prompts: Questions to answer - .txt with one a line, or .jsonl and .json in the form of MT-Bench or AlpacaEval.
        num_prompts: The first so many of them; all by default.
        max_new_tokens: Length limit of an answer, in tokens.
        temperature: Of sampled answers; 0 is greedy.
        output: Folder for evaluation.md and evaluation.json, and the answers.
        dtype: Of the weights: float32, bfloat16, float16 or auto.
        device: Such as cuda:0 or cpu; a GPU where there is one.
        seed: Decides which windows are drawn.
        trust_remote_code: Run code that comes with the model.
    """
    require_writable(output, inside=True)
    names = model_names(models)
    names = [*([] if against is None else [against]), *(each for each in names if each != against)]
    questions = _questions(prompts, num_prompts, output)
    wanted, left_out = chosen_tasks(tasks or (), include_path, run_code=run_code)
    require_positive(num_windows=num_windows, batch_size=batch_size, limit=limit, max_new_tokens=max_new_tokens)
    sources = ["builtin"] if texts is None else texts
    labels = text_labels(sources)
    device = default_device(device)
    rows: list[Measured] = []
    conversation = Conversation(questions, max_new_tokens, temperature, batch_size, seed)
    for name in names:
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        conversation.require_askable(tokenizer)
        batches = {
            label: _counted(
                drawn_windows(text, tokenizer, window=window, stride=stride, wanted=1, most=num_windows, seed=seed),
                batch_size,
                stride,
            )
            for label, text in zip(labels, sources, strict=True)
        }
        model = load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        found = {label: perplexity(model, each) for label, each in batches.items()}
        options: dict[str, Any] = {"include_path": include_path, "limit": limit, "batch_size": batch_size}
        if not removed_sublayers(model):
            hint_if_implausible(min(each.nll for each in found.values()), model)
        scores = task_scores(model, tokenizer, wanted, **options, run_code=run_code) if wanted else {}
        conversation.ask(name, model, tokenizer, is_reference=name == against)
        num_parameters = sum(each.numel() for each in model.parameters())
        rows.append(Measured(name, num_parameters, found, scores))
        said = ", ".join(f"{label} {each.ppl:.2f}" for label, each in found.items())
        say(f"{name}: perplexity {said}", flush=True)
    steps = "" if stride is None else f" of which the last {stride} count"
    protocol = f"Perplexity: windows of {window} tokens{steps}, at most {num_windows} of a text, {dtype}, {device}."
    page = f"{evaluation_markdown(rows, compared=against is not None)}\n{' '.join([protocol, *left_out])}\n"
    if questions:
        page += f"\n{signs_markdown(conversation.signs)}\n{conversation.protocol}\n"
    say(f"\n{page}")
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"texts": sources, "window": window, "stride": stride, "num_windows": num_windows}
        settings |= {"dtype": dtype, "seed": seed, "limit": limit, "against": against}
        data = {"settings": settings, "models": [asdict(each) for each in rows]}
        if questions:
            data |= conversation.to_dict()
            conversation.write(folder)
        write_text(folder / "evaluation.json", json.dumps(to_json(data), indent=2, allow_nan=False) + "\n")
        write_text(folder / "evaluation.md", page)
        say(f"written: {folder / 'evaluation.md'}")


run = partial(call, evaluate)


def _counted(windows: Tensor, batch_size: int, stride: int | None) -> list[dict[str, Tensor]]:
    """Batches in which the last `stride` tokens of a window are to be predicted; all but the first without."""
    batches = calibration_batches(windows, batch_size)
    if stride is not None:
        for batch in batches:
            batch["labels"][:, : windows.shape[1] - stride] = IGNORED
    return batches


def _questions(path: str | None, number: int | None, output: str | None) -> list[Prompt]:
    if path is None:
        return []
    if output is None:
        raise LitPruneError("prompts want an output folder for the answers; give it as --output")
    return read_prompts(path)[:number]
