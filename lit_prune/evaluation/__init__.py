"""How good and how fast a model is: perplexity, answers, seconds. Changes no model."""

from lit_prune.evaluation.answers import answer
from lit_prune.evaluation.memory import SearchMemory, measure_search_memory
from lit_prune.evaluation.perplexity import Perplexity, perplexity
from lit_prune.evaluation.search_cost import SearchCost, compare_searches
from lit_prune.evaluation.speed import Speed, compare_speed, dense_twin

__all__ = [
    "Perplexity",
    "SearchCost",
    "SearchMemory",
    "Speed",
    "answer",
    "compare_searches",
    "compare_speed",
    "dense_twin",
    "measure_search_memory",
    "perplexity",
]
