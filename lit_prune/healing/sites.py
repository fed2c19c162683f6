"""Where the stream of a pruned model can be changed towards the dense one's: known by structure alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lit_prune.anatomy import PARALLEL_FORMS, Anatomy, Sublayer
from lit_prune.plan import SublayerId


@dataclass(frozen=True)
class Point:
    """A point of the stream: behind a block, or `between` its attention and its FFN; the block by its place."""

    position: int
    between: bool = False


@dataclass(frozen=True)
class Site:
    """Sublayers that stay and write into the stream before the next one reads it: one, or both of a parallel block.

    Attributes:
        sublayers: The sublayers, attention first.
        point: The point behind them.
        target: The point behind all that the dense model writes before the next sublayer that stays: what was removed
            right behind the site is made up for at it.
    """

    sublayers: tuple[Sublayer, ...]
    point: Point
    target: Point

    @property
    def name(self) -> str:
        """The addresses of the sublayers."""
        return "+".join(str(sublayer.id) for sublayer in self.sublayers)


def sites_of(dense: Anatomy, pruned: Anatomy) -> list[Site]:
    """Where a pruned stream can be changed towards the dense one, front to back: from the first removal on.

    The sublayers right before the first removal are there as well, as nothing reads the stream between them and it.
    """
    sites: list[Site] = []
    changed = False
    for group in _written_together(dense):
        kept = tuple(sublayer for sublayer in group if sublayer.id in pruned)
        last = group[-1]
        position = dense.position(last.id.block)
        alone = SublayerId(last.id.block, "mlp") not in dense
        point = Point(position, between=last.id.kind == "attention" and not alone)
        if len(kept) < len(group) and not changed:
            # All before the first removal is as it was, but for what writes right before it.
            changed, sites = True, sites[-1:] if not kept else []
        if kept:
            sites.append(Site(kept, point, point))
        elif sites:
            sites[-1] = replace(sites[-1], target=point)
    return sites if changed else []


def _written_together(anatomy: Anatomy) -> list[tuple[Sublayer, ...]]:
    """Sublayers between which nothing reads the stream: those of a parallel block; any other is alone."""
    groups: list[tuple[Sublayer, ...]] = []
    for sublayer in anatomy.sublayers:
        before = groups[-1][-1] if groups else None
        together = before is not None and before.id.block == sublayer.id.block and sublayer.form in PARALLEL_FORMS
        groups = [*groups[:-1], (*groups[-1], sublayer)] if together else [*groups, (sublayer,)]
    return groups
