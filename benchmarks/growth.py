"""How the cost of a search grows with depth: `python -m benchmarks.growth` prints a table of docs/benchmarks/.

Tiny Llama-shaped models with random weights, which score text that they wrote themselves; counts alone mean anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedModel

from benchmarks.search import SearchCost, compare_searches
from tests import naive
from tests.tiny import tiny_model

DEPTHS = (8, 16, 32, 64)
SEARCHES = ("naive", "progressive", "lazy")


def costs(depth: int, searches: Sequence[str], *, amount: float = 0.2, num_batches: int = 4) -> list[SearchCost]:
    """Each search on a model of so many blocks, 2 sequences of 20 tokens in a batch."""

    def make() -> PreTrainedModel:
        return cast(PreTrainedModel, tiny_model("llama", num_hidden_layers=depth))

    text = naive.own_text(make(), 2 * num_batches + 4, 20)
    batches = [{"input_ids": text[2 * index : 2 * index + 2]} for index in range(num_batches)]
    unseen = [{"input_ids": text[2 * num_batches :]}]
    return list(compare_searches(make, batches, unseen, amount=amount, searches=searches, progress=False))


def main() -> None:
    """Print a row for every depth as soon as it is known."""
    heads = " | ".join(["blocks", "removals", *SEARCHES, "lazy, by blocks"])
    print(f"| {heads} |\n|{' ---: |' * (len(SEARCHES) + 3)}", flush=True)
    for depth in DEPTHS:
        found = costs(depth, SEARCHES)
        passes = [cost.dense_passes for cost in found]
        figures = " | ".join(f"{number:,.1f}" for number in passes)
        print(f"| {depth} | {len(found[0].removed)} | {figures} | {passes[-1] / depth:.2f} |", flush=True)


if __name__ == "__main__":
    main()
