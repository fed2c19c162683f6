"""How good and how fast a model is: perplexity, tasks, answers, seconds; methods and searches side by side."""

from lit_prune.evaluation.answers import answer
from lit_prune.evaluation.comparison import DENSE, WANDA, Comparison, Entry, Result, Results, read_results
from lit_prune.evaluation.measured import Measured, exceeds_error
from lit_prune.evaluation.memory import SearchMemory, measure_search_memory
from lit_prune.evaluation.perplexity import Perplexity, perplexity
from lit_prune.evaluation.search_cost import SearchCost, compare_searches
from lit_prune.evaluation.semi_structured import wanda_2_4, wanda_sparsifier
from lit_prune.evaluation.speed import Speed, compare_speed, dense_twin
from lit_prune.evaluation.tasks import TaskScore, require_tasks, task_scores

__all__ = [
    "DENSE",
    "WANDA",
    "Comparison",
    "Entry",
    "Measured",
    "Perplexity",
    "Result",
    "Results",
    "SearchCost",
    "SearchMemory",
    "Speed",
    "TaskScore",
    "answer",
    "compare_searches",
    "compare_speed",
    "dense_twin",
    "exceeds_error",
    "measure_search_memory",
    "perplexity",
    "read_results",
    "require_tasks",
    "task_scores",
    "wanda_2_4",
    "wanda_sparsifier",
]
