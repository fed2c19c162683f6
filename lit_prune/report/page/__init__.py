"""The report: what pruning did, as one HTML page that needs nothing else."""

from lit_prune.report.page.render import render, report_page
from lit_prune.report.page.sources import Dialogue, Evaluation, read_evaluation, read_sources

__all__ = ["Dialogue", "Evaluation", "read_evaluation", "read_sources", "render", "report_page"]
