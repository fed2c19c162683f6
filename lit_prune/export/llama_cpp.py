"""Asks llama.cpp itself what a GGUF file computes and how it cuts text, where the package xllamacpp is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import context_length
from lit_prune.errors import ModelError
from lit_prune.measure import evaluating

QUESTION = "The 3 largest cities of the United States, in 2024, are"
HARD_TEXTS = (
    QUESTION,
    "Two  spaces,   three,\ttabs\t\tand  \n lines \n\n\n of\r\nall kinds \u00a0 \u3000 ",
    "They'll say it's 1234567 or 12,345.67 \u00d7 10^9; WE'VE don't I'M x86_64 3rd\u00bd \u0663\u0664 \u00b2",
    'def f(x, *a):\n\treturn {"key": [x**2, -1.5e-3]}  # __init__ != <b>"a"</b> && $HOME/~user\\n;;;???!!!',
    "Na\u00efve fa\u00e7ade \u2014 \u201cStra\u00dfe\u201d \u2026 \u041c\u043e\u0441\u043a\u0432\u0430 \u0130stanbul",
    "\u6771\u4eac\u3067\u3059\u3002\ud55c\uad6d\uc5b4",
    "\u0639\u0631\u0628\u064a \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001d54f \ufffd \u2581 <0x0A>",
    "\ufb01 \uff21\uff22\uff23 \u2460 \u1e9e",
)
"""What tokenizers cut in different ways: spaces, digits, short forms, code, accents, scripts, emoji, and what
normalisers change, such as ligatures and wide letters."""
RARE_TEXTS = (" a", "e\u0301 a\u0308 \u1e9b\u0323 \u212b")
"""What llama.cpp cuts otherwise with tokenizers that are sound for all else: it puts a space before one that begins a
text, as SentencePiece does and transformers does not, and composes no characters."""
CONTEXT, LIKELIEST, ERRORS = 512, 10, 1
TOLERANCES = {True: 0.02, False: 0.5}
"""Nats that a log-probability may differ by: weights as they are, and rounded ones."""
LENT = "a GGUF file of the dense model has one that llama.cpp reads: give it as --tokenizer_from"


def is_installed() -> bool:
    """Whether llama.cpp can be asked."""
    return importlib.util.find_spec("xllamacpp") is not None


def require_same_in_llama_cpp(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, *, exact: bool, lent: bool = False
) -> None:
    """Compare tokens of hard texts, and probabilities behind tokens, by transformers and by llama.cpp.

    Nothing where that is not installed.

    Args:
        model: What the file was made of.
        tokenizer: Its tokenizer.
        file: The GGUF file.
        exact: Whether it holds weights in float32.
        lent: Whether the tokenizer in the file is another GGUF file's, as which it is taken: what that cuts otherwise
            is a warning.

    Raises:
        ModelError: They differ, or llama.cpp does not read the file; with its reason.
    """
    if not is_installed():
        return
    added = [str(each) for each in tokenizer.added_tokens_decoder.values()]
    hard, rare = ("".join(f"a{each}" for each in added), "".join(f"{each} b" for each in added))
    with server(file) as runtime:
        difference = _cut_otherwise(runtime, tokenizer, (*HARD_TEXTS, hard))
        if difference is not None and not lent:
            raise ModelError(f"{difference}; {LENT}")
        difference = difference or _cut_otherwise(runtime, tokenizer, (*RARE_TEXTS, rare))
        if difference is not None:
            warnings.warn(difference, stacklevel=2)
        # As numbers, which llama.cpp does not cut.
        for text in (QUESTION, "".join(HARD_TEXTS)):
            ids = _ids(tokenizer, text)[: min(CONTEXT, context_length(model.config) or CONTEXT) - 1]
            _require_likeliest(model, runtime, ids, _plain_token(tokenizer), exact=exact)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False)["input_ids"])


def _cut_otherwise(runtime: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str | None:
    """The first of the texts that llama.cpp cuts into other tokens, in words; None where there is none."""
    for text in filter(None, texts):
        expected, found = _ids(tokenizer, text), _tokens(runtime, text)
        if expected != found:
            place = next((at for at, pair in enumerate(zip(expected, found, strict=False)) if len({*pair}) > 1), None)
            start = min(len(expected), len(found)) if place is None else place  # one may be the other's beginning
            one, two = (tokenizer.convert_ids_to_tokens(each[start : start + 4]) for each in (expected, found))
            return f"llama.cpp cuts {text[:60]!r} otherwise: into {two} where the tokenizer has {one}"
    return None


def _tokens(runtime: Any, text: str) -> list[int]:
    """What llama.cpp cuts a text into, by its own server's door on this machine, past any proxy."""
    data = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    request = Request(f"{runtime.listening_address}/tokenize", data, {"Content-Type": "application/json"})
    try:
        with build_opener(ProxyHandler({})).open(request) as answer:
            return list(json.load(answer)["tokens"])
    except (URLError, ValueError, LookupError) as error:
        raise ModelError(f"llama.cpp does not cut {text[:60]!r} with this file: {error}") from error


def _plain_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """A token of plain letters."""
    return next((number for name, number in tokenizer.get_vocab().items() if name.isascii() and name.isalpha()), None)


def _require_likeliest(
    model: PreTrainedModel, runtime: Any, ids: Sequence[int], plain: int | None, *, exact: bool
) -> None:
    network: Any = model
    with evaluating(model):
        logits = network(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
    expected = torch.log_softmax(logits.float(), dim=-1).cpu()
    request = {"prompt": list(ids), "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0.0, "cache_prompt": False}
    # Probabilities come with text alone, and half a character is none: the one that is written is prescribed. Those of
    # the likeliest are as before.
    request |= {} if plain is None else {"logit_bias": [[plain, 1e9]]}
    answer = runtime.handle_completions(request)
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
def server(file: Path, *, context: int = CONTEXT, threads: int | None = None) -> Iterator[Any]:
    """llama.cpp's server in this process, which only this machine reaches.

    Args:
        file: A GGUF file.
        context: Tokens that it keeps.
        threads: Of the CPU; as many as torch uses by default.

    Raises:
        ModelError: llama.cpp does not read the file; with what it says of it.
    """
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx = context
    options.n_parallel = 1
    options.warmup = False
    options.verbosity = ERRORS
    options.cpuparams.n_threads = threads or torch.get_num_threads()
    with _said_to_the_screen() as said:
        try:
            runtime = xllamacpp.Server(options)
        except RuntimeError as error:
            raise ModelError(f"llama.cpp does not read this file: {_reason(said) or error}") from error
    try:
        yield runtime
    finally:
        del runtime


@contextmanager
def _said_to_the_screen() -> Iterator[Path]:
    """What is written to the process's error stream meanwhile, by C too, goes to a file, which is gone afterwards."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.txt"
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
        try:
            yield path
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def _reason(said: Path) -> str:
    """The first error in llama.cpp's log, without what comes before its last name of a function."""
    lines = said.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line.partition(": ")[2] for line in lines if " E " in line and "error" in line]
    return found[0].strip() if found else ""
