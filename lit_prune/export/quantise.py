"""GGUF files with fewer bits a weight, by llama.cpp's own tool `llama-quantize`, out of one that was compared."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lit_prune.errors import ModelError
from lit_prune.export.targets import GGUF_FILE_TYPES, GGUF_QUANTISED
from lit_prune.files import name_aside

TOOL = "llama-quantize"
WHOLE = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""How the weights are stored that the tool reads, by the model's data type: as they are."""


def require_weights(weights: str) -> None:
    """Refuse with a ModelError, before long work, a way to store weights that is unknown or lacks its tool."""
    if weights not in (*GGUF_FILE_TYPES, *GGUF_QUANTISED):
        raise ModelError(
            f"a GGUF file holds matrices as {', '.join((*GGUF_FILE_TYPES, *GGUF_QUANTISED))}, not {weights!r}"
        )
    if weights in GGUF_QUANTISED and shutil.which(TOOL) is None:
        raise ModelError(
            f"{weights} is written by llama.cpp's own {TOOL}, which is not among the programs of this machine: install "
            "llama.cpp (its releases, brew, conda-forge or nix) and put its folder in PATH; q8_0 needs nothing"
        )


@contextmanager
def to_be_quantised(aside: Path, weights: str, dtype: torch.dtype) -> Iterator[tuple[Path, str]]:
    """Give a name for a file to write first and how its weights are stored; it is quantised when the block ends.

    Where `weights` is nothing to be quantised to, the file is `aside` itself. A ModelError says that the tool failed,
    or that a tensor came out as another one.
    """
    if weights not in GGUF_QUANTISED:
        yield aside, weights
        return
    # Beside it, since it is as large as the model; what a killed process left goes with the next.
    whole = name_aside(aside.with_name(f"{aside.name.removesuffix('.part')}.whole"))
    try:
        yield whole, WHOLE.get(dtype, "f16")
        _quantise(whole, aside, weights)
        _require_close(whole, aside, GGUF_QUANTISED[weights])
    finally:
        whole.unlink(missing_ok=True)


def _quantise(whole: Path, quantised: Path, weights: str) -> None:
    command = [shutil.which(TOOL) or TOOL, str(whole), str(quantised), weights.upper(), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode or not quantised.is_file():
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ModelError(f"{TOOL} ended by {done.returncode}: {said[-1] if said else 'it said nothing'}")


def _require_close(whole: Path, quantised: Path, allowed: float) -> None:
    """Compare tensors by name, and by how far values moved: at most this share of a tensor's norm."""
    import gguf

    before, after = ({each.name: each for each in gguf.GGUFReader(file).tensors} for file in (whole, quantised))
    if differing := sorted(before.keys() ^ after.keys()):
        raise ModelError(f"{TOOL} wrote other tensors: {', '.join(differing[:3])}")
    for name, tensor in before.items():
        own, found = (
            torch.tensor(gguf.quants.dequantize(each.data, each.tensor_type)) for each in (tensor, after[name])
        )
        if own.shape != found.shape or not (own - found).norm() <= allowed * own.norm():
            raise ModelError(f"{TOOL} wrote other values: those of {name} moved by more than {allowed:g} of their norm")
