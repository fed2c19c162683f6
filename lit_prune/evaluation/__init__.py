"""How good and how fast a model is, what each sublayer does to its stream, and what a search of it will take."""

from lit_prune.evaluation.answers import Turn, answer, answers, question, spoken
from lit_prune.evaluation.comparison import Comparison
from lit_prune.evaluation.damage import Reference, Signs, references, signs
from lit_prune.evaluation.drafting import Drafting, compare_drafts
from lit_prune.evaluation.estimate import (
    MODES,
    SearchWork,
    Sizes,
    estimated_work,
    load_of,
    memory_of,
    named_shapes,
    require_mode,
    shaped,
    unfilled,
)
from lit_prune.evaluation.footprint import measure_footprint
from lit_prune.evaluation.forecast import Forecast, forecasts, predicted_speedup
from lit_prune.evaluation.knee import FEWEST_POINTS, knee
from lit_prune.evaluation.measured import Measured, exceeds_error
from lit_prune.evaluation.perplexity import TokenLoss, perplexity
from lit_prune.evaluation.prompts import Prompt, alpaca_eval_outputs, mt_bench_answers, read_prompts
from lit_prune.evaluation.results import (
    DENSE,
    WANDA,
    Batches,
    Entry,
    Result,
    Results,
    averaged,
    rank_correlation,
    read_results,
)
from lit_prune.evaluation.semi_structured import wanda_2_4, wanda_sparsifier
from lit_prune.evaluation.speed import Ideal, Speed, compare_speed, dense_twin, require_sizes, speedup
from lit_prune.evaluation.stream_analysis import analyse
from lit_prune.evaluation.stream_figures import Analysis, DepthFigures, PathFigures, SublayerFigures
from lit_prune.evaluation.tasks import TaskScore, chosen_tasks, require_tasks, task_scores
from lit_prune.evaluation.ties import apart_by_perplexity, apart_by_speed, apart_by_task, perplexity_interval
from lit_prune.evaluation.unraveled import BIASES, EMBEDDING

__all__ = [
    "BIASES",
    "DENSE",
    "EMBEDDING",
    "FEWEST_POINTS",
    "MODES",
    "WANDA",
    "Analysis",
    "Batches",
    "Comparison",
    "DepthFigures",
    "Drafting",
    "Entry",
    "Forecast",
    "Ideal",
    "Measured",
    "PathFigures",
    "Prompt",
    "Reference",
    "Result",
    "Results",
    "SearchWork",
    "Signs",
    "Sizes",
    "Speed",
    "SublayerFigures",
    "TaskScore",
    "TokenLoss",
    "Turn",
    "alpaca_eval_outputs",
    "analyse",
    "answer",
    "answers",
    "apart_by_perplexity",
    "apart_by_speed",
    "apart_by_task",
    "averaged",
    "chosen_tasks",
    "compare_drafts",
    "compare_speed",
    "dense_twin",
    "estimated_work",
    "exceeds_error",
    "forecasts",
    "knee",
    "load_of",
    "measure_footprint",
    "memory_of",
    "mt_bench_answers",
    "named_shapes",
    "perplexity",
    "perplexity_interval",
    "predicted_speedup",
    "question",
    "rank_correlation",
    "read_prompts",
    "read_results",
    "references",
    "require_mode",
    "require_sizes",
    "require_tasks",
    "shaped",
    "signs",
    "speedup",
    "spoken",
    "task_scores",
    "unfilled",
    "wanda_2_4",
    "wanda_sparsifier",
]
