"""The table of docs/benchmarks/reliability.md has every row of the campaign, and none that is not there."""

import re
from pathlib import Path

from benchmarks.campaign.__main__ import ROWS

DOC = (Path(__file__).parents[2] / "docs/benchmarks/reliability.md").read_text()


def test_every_fault_has_its_row_and_nothing_was_lost():
    rows = re.findall(r"^\| (.+) \| (\d+) \| (.+) \| `(.+)` \|$", DOC, re.MULTILINE)
    assert [(fault, name) for fault, _, _, name in rows] == [(fault, name) for name, (fault, *_) in ROWS.items()]
    for _, number, outcomes, name in rows:
        counts = [int(each) for each in re.findall(r"\((\d+)\)", outcomes)]
        assert sum(counts) == int(number), name
    assert "WRONG" not in DOC
    total = sum(int(number) for _, number, _, _ in rows)
    assert f"{total} cases" in DOC
