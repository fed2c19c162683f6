"""The report: what pruning did, as one HTML page that needs nothing else."""

from lit_prune.report.dialogues import Dialogue
from lit_prune.report.evaluations import Evaluation, read_evaluation
from lit_prune.report.page.folders import read_sources
from lit_prune.report.page.render import render, report_page

__all__ = ["Dialogue", "Evaluation", "read_evaluation", "read_sources", "render", "report_page"]
