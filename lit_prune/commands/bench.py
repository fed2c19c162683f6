"""`lit-prune bench`: how fast models are, and what a search will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import getdoc

from lit_prune.commands.arguments import call
from lit_prune.commands.bench_draft import bench_draft
from lit_prune.commands.bench_scale import bench_scale
from lit_prune.commands.bench_speed import bench_speed
from lit_prune.errors import LitPruneError, did_you_mean
from lit_prune.files import say

KINDS: dict[str, Callable[..., None]] = {"speed": bench_speed, "draft": bench_draft, "scale": bench_scale}
FROM_A_CHECKOUT = ("search", "memory")
"""Measure lit-prune itself, and are not shipped."""


def run(program: str, arguments: Sequence[str]) -> None:
    """Run the kind of measurement that is named first."""
    kind = arguments[0] if arguments else "--help"
    if kind in KINDS:
        call(KINDS[kind], f"{program} {kind}", arguments[1:])
    elif kind in ("-h", "--help"):
        say(_overview(program))
    elif kind in FROM_A_CHECKOUT:
        raise LitPruneError(f"bench {kind} is now python -m benchmarks.{kind}, run from a checkout of lit-prune")
    else:
        raise LitPruneError(
            f"bench knows {', '.join([*KINDS][:-1])} and {[*KINDS][-1]}; found {kind!r}{did_you_mean(kind, KINDS)}"
        )


def _overview(program: str) -> str:
    lines = [f"  {kind:<7}{(getdoc(measure) or '').partition(chr(10) * 2)[0]}" for kind, measure in KINDS.items()]
    return "\n".join([f"usage: {program} KIND ...", "", *lines, "", f"{program} KIND --help tells what each takes."])
