"""Where a curve of losses begins to bend upwards."""

from __future__ import annotations

from collections.abc import Sequence

FEWEST_POINTS = 4
"""Points of a curve, the dense model's among them, of fewer of which no bend is told."""
LEAST_BEND = 0.05
"""Depth below the chord, of its height, under which a curve counts as straight."""


def knee(shares: Sequence[float], losses: Sequence[float]) -> int | None:
    """Find the point behind which removing more costs more than before: furthest below the chord of a convex curve.

    Kneedle without smoothing (Satopää et al., "Finding a Kneedle in a Haystack", 2011).

    Args:
        shares: What was removed, rising, with the dense model's 0 in front.
        losses: The loss at each, in nats.

    Returns:
        The index of the point; None where there are fewer than four points, or where the curve does not bend.

    Example:
        >>> knee([0.0, 0.1, 0.2, 0.3], [3.0, 3.1, 3.2, 4.0])
        2
        >>> knee([0.0, 0.1, 0.2, 0.3], [3.0, 3.1, 3.2, 3.3])
    """
    width, height = shares[-1] - shares[0], losses[-1] - losses[0]
    if len(shares) < FEWEST_POINTS or width <= 0 or height <= 0:
        return None
    below = [
        (share - shares[0]) / width - (loss - losses[0]) / height for share, loss in zip(shares, losses, strict=True)
    ]
    deepest = max(range(len(below)), key=below.__getitem__)
    return deepest if below[deepest] >= LEAST_BEND else None
