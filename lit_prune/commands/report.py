"""`lit-prune report`: one HTML page about what pruning did."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lit_prune.commands.arguments import call, require_writable
from lit_prune.files import say, write_text


def report(runs: list[str], *, output: str = "report.html", trust_remote_code: bool = False) -> None:
    """Show what pruning did on one HTML page, which needs no network and no other file.

    Args:
        runs: Folders that lit-prune has written - models of prune, apply and heal, runs of fit, and what evaluate,
            compare and analyse left. Evaluations are put to the models that they measured.
        output: The page.
        trust_remote_code: Run code that comes with a model, to find out how it is loaded.
    """
    from lit_prune.report.page import report_page

    require_writable(output)
    page = report_page(runs, trust_remote_code=trust_remote_code)
    say(f"written: {write_text(Path(output).expanduser(), page)}, for any browser")


run = partial(call, report)
