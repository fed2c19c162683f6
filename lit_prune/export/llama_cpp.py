"""Asks llama.cpp itself what a GGUF file computes, where the package xllamacpp is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.errors import ModelError
from lit_prune.measure import evaluating

QUESTION = "The 3 largest cities of the United States, in 2024, are"
LIKELIEST, SILENT = 10, -1
TOLERANCES = {True: 0.02, False: 0.5}
"""Nats that a log-probability may differ by: weights as they are, and rounded ones."""


def is_installed() -> bool:
    """Whether llama.cpp can be asked."""
    return importlib.util.find_spec("xllamacpp") is not None


def require_same_in_llama_cpp(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, *, exact: bool
) -> None:
    """Compare what is likeliest after a text, by transformers and by llama.cpp; nothing where that is not installed.

    Args:
        model: What the file was made of.
        tokenizer: Its tokenizer: the text goes to llama.cpp as text.
        file: The GGUF file.
        exact: Whether it holds weights in float32.

    Raises:
        ModelError: They differ.
    """
    if not is_installed():
        return
    ids: Any = tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    network: Any = model
    with evaluating(model):
        logits = network(input_ids=ids.to(model.device), use_cache=False).logits[0, -1]
    expected = torch.log_softmax(logits.float(), dim=-1).cpu()
    with server(file) as runtime:
        answer = runtime.handle_completions(
            {"prompt": QUESTION, "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0.0}
        )
    try:
        likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(f"llama.cpp does not answer with this file: {answer.get('error', answer)}") from error
    allowed = TOLERANCES[exact and model.dtype == torch.float32]
    worst = max(abs(float(expected[each["id"]]) - each["logprob"]) for each in likeliest)
    if not worst <= allowed:
        raise ModelError(
            f"llama.cpp reads the file otherwise: log-probabilities of the likeliest tokens differ by {worst:.3g}, "
            f"{allowed:g} is allowed"
        )


@contextmanager
def server(file: Path, *, context: int = 512, threads: int | None = None) -> Iterator[Any]:
    """llama.cpp's server in this process, without a socket.

    Args:
        file: A GGUF file.
        context: Tokens that it keeps.
        threads: Of the CPU; as many as torch uses by default.
    """
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx = context
    options.n_parallel = 1
    options.warmup = False
    options.verbosity = SILENT
    options.cpuparams.n_threads = threads or torch.get_num_threads()
    runtime = xllamacpp.Server(options)
    try:
        yield runtime
    finally:
        del runtime
