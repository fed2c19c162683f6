"""What measures lit-prune itself, run as modules from a checkout, such as `python -m benchmarks.search MODEL`.

- `search`: what searches cost and what they find, beside the naive one
- `memory`: the memory that a search takes, at its peak
- `scale`: searches simulated on shapes that no machine at hand holds, and predictions beside what was measured
- `growth`: how the cost of a search grows with depth
- `paper`: a model pruned as the paper does and by its rivals, beside what was published
- `dialling`: every size between a pruned model and its dense one, by several rules
- `domains`: texts of five kinds, for the figures in docs
- `teacher_memory`: the memory of a distillation step, with the teacher inside the student and beside it
- `campaign`: faults injected into the real programs; `campaign.soak` runs many rounds in one process

`naive` and `simulator` hold the reference and the drawn losses that these measure with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lit_prune.__main__ import exit_code
from lit_prune.commands.arguments import call


def run(benchmark: Callable[..., None], arguments: Sequence[str] | None = None) -> int:
    """Read a benchmark's command line and call it; what a user did wrong is one line and exit code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: call(benchmark, f"python -m benchmarks.{benchmark.__name__}", given))
