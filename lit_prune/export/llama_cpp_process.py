"""llama.cpp's server on one file, asked by a process of its own: a file that it does not understand may end it.

Run as a script, it reads what is asked from the standard input and writes the answers to the standard output, as JSON.
Imports neither torch nor anything else of lit_prune.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

CONTEXT, ERRORS = 512, 1


@contextmanager
def server(file: Path, *, threads: int = 1) -> Iterator[Any]:
    """llama.cpp's server on a GGUF file in this process, with so many threads, which only this machine reaches.

    A RuntimeError says that it does not read the file; the error stream says why.
    """
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx = CONTEXT
    options.n_parallel = 1
    options.warmup = False
    options.verbosity = ERRORS
    options.cpuparams.n_threads = threads
    runtime = xllamacpp.Server(options)
    try:
        yield runtime
    finally:
        del runtime


def tokens_of(runtime: Any, text: str) -> list[int]:
    """What llama.cpp cuts a text into, asked of its server at its own address, past any proxy."""
    data = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    request = Request(f"{runtime.listening_address}/tokenize", data, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request) as answer:
        return list(json.load(answer)["tokens"])


def main() -> None:
    """Answer what is asked: `tokens` of the `texts`, and `completions` of the `requests`."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what else is printed is no answer
    asked = json.load(sys.stdin)
    with server(Path(asked["file"]), threads=asked["threads"]) as runtime:
        found = {
            "tokens": [tokens_of(runtime, text) for text in asked["texts"]],
            "completions": [runtime.handle_completions(request) for request in asked["requests"]],
        }
    with os.fdopen(answers, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
