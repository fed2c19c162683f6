"""How the cost of a search grows with depth: `python -m tests.growth` prints the table of docs/performance.md.

Tiny Llama-shaped models with random weights, which score text that they wrote themselves; counts alone mean anything.
"""

from lit_prune.evaluation import compare_searches
from tests import naive
from tests.tiny import tiny_model

DEPTHS = (8, 16, 32, 64)
SEARCHES = ("naive", "progressive", "lazy")


def costs(depth, searches, *, amount=0.2, num_batches=4):
    """Each search on a model of so many blocks, 2 sequences of 20 tokens in a batch."""

    def make():
        return tiny_model("llama", num_hidden_layers=depth)

    text = naive.own_text(make(), 2 * num_batches + 4, 20)
    batches = [{"input_ids": text[2 * index : 2 * index + 2]} for index in range(num_batches)]
    unseen = [{"input_ids": text[2 * num_batches :]}]
    return list(compare_searches(make, batches, unseen, amount=amount, searches=searches, progress=False))


def main():
    print(
        f"| blocks | removals | {' | '.join(SEARCHES)} | lazy, by blocks |\n| ---: | ---: |{' ---: |' * 4}", flush=True
    )
    for depth in DEPTHS:
        found = costs(depth, SEARCHES)
        passes = [each.dense_passes for each in found]
        cells = [
            str(depth),
            str(len(found[0].removed)),
            *(f"{each:,.1f}" for each in passes),
            f"{passes[-1] / depth:.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
