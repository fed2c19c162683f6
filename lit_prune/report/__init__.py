"""What people look at: the map of scores, the summary before and after, and loggers. Decides and measures nothing."""

from lit_prune.report.analyses import analysis_figures, analysis_markdown, write_analysis
from lit_prune.report.comparisons import (
    comparison_csv,
    comparison_figure,
    comparison_markdown,
)
from lit_prune.report.drawing import save_figure
from lit_prune.report.evaluations import answers_markdown, evaluation_markdown, signs_markdown
from lit_prune.report.inventory_table import print_inventory
from lit_prune.report.removal_map import removal_figure
from lit_prune.report.score_map import plan_score_map, score_map
from lit_prune.report.summary import (
    Answer,
    Row,
    Summary,
    answer_markdown,
    draws_in_words,
    made_up_for,
    plan_markdown,
    print_summary,
    read_summary,
    save_summary,
    summary_markdown,
    ties,
)
from lit_prune.report.tracking import log_figure, log_files, log_scalars, log_settings, log_text

__all__ = [
    "Answer",
    "Row",
    "Summary",
    "analysis_figures",
    "analysis_markdown",
    "answer_markdown",
    "answers_markdown",
    "comparison_csv",
    "comparison_figure",
    "comparison_markdown",
    "draws_in_words",
    "evaluation_markdown",
    "log_figure",
    "log_files",
    "log_scalars",
    "log_settings",
    "log_text",
    "made_up_for",
    "plan_markdown",
    "plan_score_map",
    "print_inventory",
    "print_summary",
    "read_summary",
    "removal_figure",
    "save_figure",
    "save_summary",
    "score_map",
    "signs_markdown",
    "summary_markdown",
    "ties",
    "write_analysis",
]
