"""Asks llama.cpp itself what a GGUF file computes and how it cuts text, where the package xllamacpp is installed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import context_length
from lit_prune.errors import ModelError
from lit_prune.export import llama_cpp_process
from lit_prune.export.llama_cpp_process import CONTEXT
from lit_prune.surgery import evaluating

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
LIKELIEST = 10
TOLERANCES = {True: 0.02, False: 0.5}
"""Nats that a log-probability may differ by: weights as they are, and rounded ones."""
LENT = "a GGUF file of the dense model has one that llama.cpp reads: give it as --tokenizer_from"


def is_installed() -> bool:
    """Whether llama.cpp can be asked."""
    return importlib.util.find_spec("xllamacpp") is not None


def require_same_in_llama_cpp(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, *, exact: bool, lent: bool
) -> None:
    """Compare tokens of hard texts, and probabilities behind tokens, by transformers and by llama.cpp if installed.

    A ModelError says that they differ, or why llama.cpp does not read the file. An `exact` file holds weights in
    float32. Where the tokenizer in the file is `lent` by another GGUF file, what that cuts otherwise is a warning.
    """
    if not is_installed():
        return
    texts, rare = _texts(tokenizer)
    room = min(CONTEXT, context_length(model.config) or CONTEXT) - 1
    # As numbers, which llama.cpp does not cut.
    prompts = [_ids(tokenizer, text)[:room] for text in (QUESTION, "".join(HARD_TEXTS))]
    answer = _asked(file, (*texts, *rare), [_request(tokenizer, ids) for ids in prompts])
    difference = _cut_otherwise(tokenizer, texts, answer["tokens"][: len(texts)])
    if difference is not None and not lent:
        raise ModelError(f"{difference}; {LENT}")
    difference = difference or _cut_otherwise(tokenizer, rare, answer["tokens"][len(texts) :])
    if difference is not None:
        warnings.warn(difference, stacklevel=2)
    allowed = TOLERANCES[exact and model.dtype == torch.float32]
    for ids, completion in zip(prompts, answer["completions"], strict=True):
        _require_likeliest(model, ids, completion, allowed)


def require_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Refuse with a ModelError a file of rounded weights that llama.cpp, if installed, does not read or answer with.

    How far probabilities may move by such rounding is not known beforehand: they have to be numbers.
    """
    if is_installed():
        ids = _ids(tokenizer, QUESTION)[: (context_length(model.config) or CONTEXT) - 1]
        answer = _asked(file, (), [_request(tokenizer, ids)])["completions"][0]
        _require_likeliest(model, ids, answer, float("inf"))


def _texts(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Those that llama.cpp has to cut alike, and those that sound files cut otherwise; added tokens are in both."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    hard, rare = "".join(f"a{token}" for token in added), "".join(f"{token} b" for token in added)
    return [*HARD_TEXTS, *filter(None, [hard])], [*RARE_TEXTS, *filter(None, [rare])]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False)["input_ids"])


def _request(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> dict[str, Any]:
    """Ask what is likeliest behind some tokens.

    Probabilities come with text alone, and half a character is none: a token of plain letters is prescribed where there
    is one. Those of the likeliest are as before.
    """
    request = {"prompt": ids, "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0.0, "cache_prompt": False}
    vocabulary = tokenizer.get_vocab().items()
    plain = next((number for name, number in vocabulary if name.isascii() and name.isalpha()), None)
    return request if plain is None else {**request, "logit_bias": [[plain, 1e9]]}


def _asked(file: Path, texts: Sequence[str], requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    asked = {"file": str(file), "threads": torch.get_num_threads(), "texts": texts, "requests": requests}
    done = subprocess.run(
        [sys.executable, "-P", llama_cpp_process.__file__],
        input=json.dumps(asked),
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        reason = _reason(done.stderr) or f"it ended by {done.returncode}"
        raise ModelError(f"llama.cpp does not read this file: {reason}")
    return cast(dict[str, Any], json.loads(done.stdout))


def _reason(said: str) -> str:
    """The first error in llama.cpp's log, without what comes before the name of its function; else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = [line.partition(": ")[2] for line in lines if " E " in line and "error" in line]
    return [*found, *lines[-1:]][0] if lines else ""


def _cut_otherwise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], found: Sequence[list[int]]) -> str | None:
    """The first text of which llama.cpp has found other tokens than the tokenizer, in words; None if there is none."""
    for text, theirs in zip(texts, found, strict=True):
        if (ours := _ids(tokenizer, text)) != theirs:
            pairs = itertools.zip_longest(ours, theirs)  # one may be the other's beginning
            start = next(place for place, (our, their) in enumerate(pairs) if our != their)
            one, two = (tokenizer.convert_ids_to_tokens(ids[start : start + 4]) for ids in (ours, theirs))
            return f"llama.cpp cuts {text[:60]!r} otherwise: into {two} where the tokenizer has {one}"
    return None


def _require_likeliest(model: PreTrainedModel, ids: Sequence[int], answer: Mapping[str, Any], allowed: float) -> None:
    with evaluating(model):
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
    expected = torch.log_softmax(logits.float(), dim=-1).cpu()
    try:
        likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(f"llama.cpp does not answer with this file: {answer.get('error', answer)}") from error
    worst = max(abs(float(expected[token["id"]]) - token["logprob"]) for token in likeliest)
    if not worst <= allowed:
        raise ModelError(
            f"llama.cpp reads the file otherwise: log-probabilities of the likeliest tokens differ by {worst:.3g}, "
            f"{allowed:g} is allowed"
        )
