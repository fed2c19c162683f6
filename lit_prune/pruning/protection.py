"""Which sublayers never go: those that a user protects, and those that a scorer's method leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

from lit_prune.anatomy import Anatomy
from lit_prune.errors import LitPruneError, PlanError
from lit_prune.plan import KINDS, Candidate, SublayerId
from lit_prune.scorers import Scorer


def protected_sublayers(names: Sequence[str], scorer: Scorer, anatomy: Anatomy) -> frozenset[SublayerId]:
    """The sublayers that are named as `Recipe.protect` names them, and those that the scorer's method never removes."""
    found = {SublayerId(block, kind) for block in scorer.protected_blocks(anatomy.num_blocks) for kind in KINDS}
    ends = {"first": "block.0", "last": f"block.{anatomy.num_blocks - 1}"}
    for name in names:
        try:
            sublayers = Candidate.parse(ends.get(name, name)).sublayers
        except PlanError as error:
            raise LitPruneError(f"protect: {error}, block.N for both, first or last") from error
        missing = [sublayer for sublayer in sublayers if sublayer not in anatomy and sublayer not in anatomy.removed]
        if missing:
            raise LitPruneError(
                f"protect: this model has no {missing[0]}; its blocks are 0 to {anatomy.num_blocks - 1}"
            )
        found.update(sublayers)
    return frozenset(found)
