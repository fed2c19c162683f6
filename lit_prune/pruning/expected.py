"""What a search is expected to run, before it is known which sublayers go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from lit_prune.anatomy import find_sublayers
from lit_prune.measure import WhatIf
from lit_prune.plan import create
from lit_prune.pruning.pruner import Pruner
from lit_prune.searches import SEARCHES, Portfolio, Quota

BY_ROUNDS = ("progressive", "lazy", "one_shot")
"""Searches of which `expected_search` tells the work beforehand."""


@dataclass(frozen=True)
class ExpectedSearch:
    """How many sublayers go, and how often a block, and the head, of a model of so many blocks runs on every batch."""

    num_removed: int
    block_evaluations: int
    head_evaluations: int
    num_blocks: int

    @property
    def dense_passes(self) -> float:
        """The block evaluations in full passes."""
        return self.block_evaluations / self.num_blocks


def expected_search(
    sizes: Sequence[float],
    target: float,
    *,
    num_blocks: int,
    search: str,
    in_one_pass: bool = False,
    most: int | None = None,
) -> ExpectedSearch:
    """Estimate what a search among candidates of these sizes runs until the sizes of what went make up the target.

    A candidate is scored by the blocks behind it, half of all on average; every round has a full pass as well. Lazy
    search scores all candidates once, and two again for every removal (none to five were seen). Scores by the share of
    parameters, such as NRI, take a sublayer with a chance that grows with its size; those of one pass do not.

    Args:
        sizes: What each candidate saves.
        target: What is to be saved, in the same unit.
        num_blocks: The number of the model's decoder blocks.
        search: One of `BY_ROUNDS`.
        in_one_pass: Whether one pass scores all candidates.
        most: The most removals; None sets no limit.

    Example:
        >>> expected_search([1.0] * 8, 2.0, num_blocks=4, search="progressive").dense_passes
        11.25
    """
    typical = sum(sizes) / len(sizes) if in_one_pass else sum(size * size for size in sizes) / sum(sizes)
    num_removed = math.ceil(min(target / typical, len(sizes), math.inf if most is None else most))
    rounds = num_removed if search == "progressive" else 1
    scored = {
        "progressive": sum(len(sizes) - number for number in range(num_removed)),
        "lazy": len(sizes) + 2 * num_removed,
        "one_shot": len(sizes),
    }[search]
    blocks = rounds * num_blocks + (0 if in_one_pass else scored * (num_blocks + 1) // 2)
    heads = rounds if in_one_pass else scored + 1
    return ExpectedSearch(num_removed, blocks, heads, num_blocks)


def expected_portfolio(sizes: Sequence[float], target: float, *, num_blocks: int, search: Portfolio) -> ExpectedSearch:
    """Estimate what a portfolio of sets runs: its lazy searches, and rounds of sets of which most begin early.

    Of a set four fifths of the blocks are taken to run. Of a model of 30 blocks that makes 41 passes for 10 and 20 %,
    where 37 to 45 were seen.
    """
    lazy = expected_search(sizes, target, num_blocks=num_blocks, search="lazy")
    searching = 1 - search.held_out
    parent = lazy.dense_passes * search.parent_share * searching
    number = max(search.parents, min(int(1 / search.parent_share), int(search.passes / 2 / parent)))
    begun = [search.children + search.swaps, *search.survivors]
    shares = [0.0, *search.shares]
    stages = sum(many * (end - start) for many, start, end in zip(begun, shares, shares[1:], strict=False))
    around = len(sizes) * search.shares[0] / 2
    rounds = search.rounds * searching * (0.8 * stages + around)
    judged = 0.8 * search.survivors[-1] * search.held_out
    blocks = round(min(number * parent + rounds, max(search.passes, 1.5 * number * parent)) + judged) * num_blocks
    return ExpectedSearch(lazy.num_removed, blocks, blocks // num_blocks, num_blocks)


def expected_of(pruner: Pruner, quota: Quota, what_if: WhatIf) -> ExpectedSearch | None:
    """What a pruner is expected to run until a quota is met.

    None where that cannot be told: for other searches, without an amount or a number, for scorers that see all
    candidates together (most of them take a pass), and for a loss of one's own, which full passes give.
    """
    name, sizes = str(pruner.plan.search.get("name")), list(pruner.candidates().values())
    left = quota.until - pruner.reached
    told = name in (*BY_ROUNDS, "portfolio") and what_if.remembers and not pruner.scorer.together
    if not told or not sizes or left <= 0 or (math.isinf(left) and quota.num_steps is None):
        return None
    num_blocks = len(find_sublayers(pruner.model).blocks)
    if name == "portfolio":
        search = cast(Portfolio, create(SEARCHES, pruner.plan.search))
        return None if math.isinf(left) else expected_portfolio(sizes, left, num_blocks=num_blocks, search=search)
    return expected_search(sizes, left, num_blocks=num_blocks, search=name, most=quota.num_steps)
