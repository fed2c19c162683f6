"""Faults in the real programs: `python -m benchmarks.campaign [ROW ...] --repeats N --seed S`, on a POSIX machine.

Prints the table of docs/benchmarks/reliability.md.
Ends with 1 where something was lost, half-written or silently wrong, and keeps the folders of these cases.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections import Counter
from random import Random

from benchmarks.campaign import children, corruption, kills, numbers, ranks, resources
from benchmarks.campaign.world import Case, World

ROWS: dict[str, tuple[str, Case, int]] = {
    "kill-prune": ("`lit-prune prune` killed, up to 3 times in a row", kills.at_random_moments("prune"), 40),
    "kill-prune-file": ("the same, before each access to its files in turn", kills.at_an_access("prune"), 75),
    "kill-prune-real": ("the same, started as users do", kills.as_started_by_users, 3),
    "kill-portfolio": ("`--method nri-portfolio` killed, up to 3 times", kills.at_random_moments("portfolio"), 12),
    "kill-heal": ("`lit-prune heal` killed, up to 3 times", kills.at_random_moments("heal"), 12),
    "kill-heal-file": ("the same, before each access to its files in turn", kills.at_an_access("heal"), 38),
    "kill-fit": ("a fit that drops, heals, writes checkpoints, killed", kills.at_random_moments("fit"), 15),
    "kill-fit-file": ("the same, before each access to its files in turn", kills.at_an_access("fit"), 55),
    "kill-fit-command": ("`lit-prune fit` killed, and its `--ckpt_path`", kills.at_random_moments("fit_command"), 15),
    "sigterm": ("`lit-prune prune` sent SIGTERM", kills.at_random_moments("prune", signal.SIGTERM), 10),
    "ctrl-c": ("`lit-prune prune` stopped by Ctrl-C", kills.at_random_moments("prune", signal.SIGINT), 15),
    "ctrl-c-heal": ("`lit-prune heal` stopped by Ctrl-C", kills.at_random_moments("heal", signal.SIGINT), 5),
    "disk-prune": ("disk full in `lit-prune prune`", resources.full_disk("prune"), 16),
    "disk-heal": ("disk full in `lit-prune heal`", resources.full_disk("heal"), 6),
    "disk-fit": ("disk full in a fit", resources.full_disk("fit"), 8),
    "file-limit": ("a file may not grow, `lit-prune prune`", resources.limited_files("prune"), 8),
    "permission": ("permission denied", resources.forbidden, 10),
    "plan-cut": ("prune_plan.json cut short", corruption.damaged("prune_plan.json", "cut"), 5),
    "plan-flip": ("a bit of prune_plan.json flipped", corruption.damaged("prune_plan.json", "flip"), 5),
    "weights-cut": ("model.safetensors cut short", corruption.damaged("model.safetensors", "cut"), 5),
    "weights-flip": ("a bit of model.safetensors flipped", corruption.damaged("model.safetensors", "flip"), 5),
    "config-cut": ("config.json cut short", corruption.damaged("config.json", "cut"), 5),
    "config-flip": ("a bit of config.json flipped", corruption.damaged("config.json", "flip"), 5),
    "journal-cut": ("a journal cut short", corruption.damaged_journal("cut"), 20),
    "journal-flip": ("a bit of a journal flipped", corruption.damaged_journal("flip"), 20),
    "checkpoint-cut": ("a checkpoint cut short", corruption.damaged_checkpoint("cut"), 8),
    "checkpoint-flip": ("a bit of a checkpoint flipped", corruption.damaged_checkpoint("flip"), 16),
    "nan-batch": ("NaN in what some windows read", numbers.not_a_number("prune", "batch"), 4),
    "nan-weight": ("NaN in one weight, `lit-prune prune`", numbers.not_a_number("prune", "weight"), 6),
    "nan-heal": ("NaN in one weight, `lit-prune heal`", numbers.not_a_number("heal", "weight"), 4),
    "memory": ("out of memory in the search", resources.little_memory, 6),
    "rank-0": ("the first of two processes killed", ranks.killed(0), 2),
    "rank-1": ("the second of two processes killed", ranks.killed(1), 2),
    "fit-rank-0": ("the first process of a sharded `lit-prune fit` killed", ranks.killed(0, "fit_command"), 2),
    "fit-rank-1": ("the second of them killed", ranks.killed(1, "fit_command"), 2),
    "clock-prune": ("a clock that jumps, `lit-prune prune`", resources.jumping_clock("prune"), 6),
    "clock-heal": ("a clock that jumps, `lit-prune heal`", resources.jumping_clock("heal"), 3),
    "clock-fit": ("a clock that jumps, a fit", resources.jumping_clock("fit"), 3),
    "rivals-prune": ("two `lit-prune prune` with one output at once", resources.rivals("prune"), 12),
    "rivals-heal": ("two `lit-prune heal` with one output at once", resources.rivals("heal"), 6),
    "rivals-fit": ("two `lit-prune fit` with one `save_to` at once", resources.rivals("fit_command"), 8),
}
"""By name: the fault, what injects it, and how often."""

NEEDS_ROOT = {"disk-prune", "disk-heal", "disk-fit", "permission"}
"""They mount file systems, and give rights up."""


def main() -> int:
    """Run the rows that are asked for, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, help="cases a row, instead of its own number")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    children.warm_up()
    world, begin = World(), time.monotonic()
    table, num_wrong, num_cases = [], 0, 0
    for name in options.rows or ROWS:
        if name in NEEDS_ROOT and os.getuid() != 0:
            print(f"{name}: left out, it needs root", file=sys.stderr)
            continue
        fault, case, number = ROWS[name]
        number = options.repeats or number
        found = Counter(
            _outcome(world, name, case, Random(f"{options.seed}/{name}/{repeat}")) for repeat in range(number)
        )
        num_cases, num_wrong = num_cases + number, num_wrong + found["WRONG"]
        outcomes = "; ".join(f"{outcome} ({count})" for outcome, count in found.most_common())
        table.append(f"| {fault} | {number} | {outcomes} | `{name}` |")
        print(table[-1], file=sys.stderr, flush=True)
    minutes = (time.monotonic() - begin) / 60
    print("| fault | cases | what happened (cases) | row |\n|---|---|---|---|")
    print("\n".join(table))
    print(f"\n{num_cases} cases, {num_wrong} of them wrong; seed {options.seed}, {minutes:.0f} minutes.")
    if num_wrong:
        print(f"what is left of them is in {world.base}", file=sys.stderr)
    else:
        shutil.rmtree(world.base)
    return int(num_wrong > 0)


def _outcome(world: World, name: str, case: Case, chance: Random) -> str:
    try:
        return case(world, chance)
    except children.Wrong as error:
        print(f"{name}: {error}", file=sys.stderr)
        return "WRONG"


if __name__ == "__main__":
    sys.exit(main())
