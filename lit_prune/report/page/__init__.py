"""The report: what pruning did, as one HTML page that needs nothing else."""

from lit_prune.report.page.render import read_sources, report_page

__all__ = ["read_sources", "report_page"]
