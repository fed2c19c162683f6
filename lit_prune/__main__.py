"""The command `lit-prune`: its verbs, and how a user's mistakes are told. `lit-prune VERB --help` explains each."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from lit_prune.errors import LitPruneError, did_you_mean

VERBS = {
    "inspect": "show a model's sublayers and their costs, without its weights",
    "analyse": "figures of the residual stream and of every sublayer",
    "fit": "prune inside a Lightning training run, from YAML",
    "validate": "validate a model or checkpoint with the same YAML",
    "test": "test a model or checkpoint with the same YAML",
    "prune": "prune a model without training",
    "heal": "train a pruned model to get back what was lost",
    "chat": "talk to a model, or to two",
    "evaluate": "perplexity and tasks of models, beside a reference",
    "bench": "compare how fast models are, and estimate what a search will take",
    "compare": "compare the field's methods in one table",
    "export": "write a model for another runtime: remote code, vLLM, llama.cpp",
    "report": "one HTML page about what pruning did",
    "apply": "apply a prune plan or recipe to a copy of its model",
    "dial": "make any size between a pruned model and its dense one",
}
"""What every verb does; `lit_prune.commands` has a module of its name, with a function `run`."""
MODULES = {"validate": "fit", "test": "fit"}
"""Verbs that another verb's module runs."""
TRAINING = ("fit", *MODULES)
"""Verbs of LightningCLI."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; what a user did wrong is one line on the error stream and exit code 2."""
    verb, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if verb in ("-h", "--help"):
        print(_overview())
        return 0
    if verb == "--version":
        from importlib.metadata import version  # `--help` waits for nothing that it does not need

        print(f"lit-prune {version('lit-prune')}")
        return 0
    if verb not in VERBS:
        return _fail(f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}; see lit-prune --help")
    if arguments is None:  # as a program of its own
        from lit_prune.commands.terminal import quieten

        quieten(training=verb in TRAINING)
    module = f"lit_prune.commands.{MODULES.get(verb, verb)}"
    return exit_code(lambda: importlib.import_module(module).run(f"lit-prune {verb}", rest))


def exit_code(command: Callable[[], object]) -> int:
    """Run a command: 0, or 2 after one line on the error stream about what a user did wrong."""
    try:
        command()
    except Exception as error:
        message = _told(error)
        if message is None:
            raise
        return _fail(message)
    return 0


def _told(error: BaseException) -> str | None:
    """What a user is told of an exception: of ours, which jsonargparse wraps, and of files; None of all else."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, LitPruneError):
        found = found.__cause__ or found.__context__
    if found is not None:
        return str(found)
    if isinstance(error, RecursionError):
        return "something that was given is nested too deeply"
    # Such as a full disk, or a file that may not be read.
    return str(error) if isinstance(error, OSError) and error.filename is not None else None


def _overview() -> str:
    lines = [f"  {verb:<10}{text}" for verb, text in VERBS.items()]
    return "\n".join(["usage: lit-prune VERB ...", "", *lines, "", "lit-prune VERB --help tells what a verb takes."])


def _fail(message: str) -> int:
    from lit_prune.files import clean

    print(f"lit-prune: error: {clean(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
