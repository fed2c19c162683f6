"""`lit-prune bench`: how fast models are, and what a search will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lit_prune.commands.arguments import call
from lit_prune.commands.bench_scale import bench_scale
from lit_prune.commands.bench_speed import bench_speed
from lit_prune.errors import LitPruneError

KINDS: dict[str, Callable[..., None]] = {"speed": bench_speed, "scale": bench_scale}
FROM_A_CHECKOUT = ("search", "memory")
"""Measure lit-prune itself, and are not shipped."""


def run(program: str, arguments: Sequence[str]) -> None:
    """Run the kind of measurement that is named first."""
    kind = arguments[0] if arguments else "--help"
    if kind in KINDS:
        call(KINDS[kind], f"{program} {kind}", arguments[1:])
    elif kind.startswith("-"):
        call(bench, program, arguments)
    else:
        bench(kind)


def bench(what: str) -> None:
    """Compare models' speeds (lit-prune bench speed --help), or estimate searches (lit-prune bench scale --help).

    Args:
        what: speed or scale.
    """
    if what in FROM_A_CHECKOUT:
        raise LitPruneError(f"bench {what} is now python -m benchmarks.{what}, run from a checkout of lit-prune")
    raise LitPruneError(f"bench knows {' and '.join(KINDS)}; found {what!r}")
