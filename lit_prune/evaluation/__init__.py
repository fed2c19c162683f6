"""How good and how fast a model is: perplexity, answers, seconds. Changes no model."""

from lit_prune.evaluation.answers import answer
from lit_prune.evaluation.perplexity import Perplexity, perplexity
from lit_prune.evaluation.speed import Speed, compare_speed, dense_twin

__all__ = ["Perplexity", "Speed", "answer", "compare_speed", "dense_twin", "perplexity"]
