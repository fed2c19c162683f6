"""What is to go, as data: sublayers, scores, plans; scorers, searches and methods by name. Knows no torch."""

from lit_prune.plan.candidates import KINDS, MAX_BLOCKS, Candidate, Scores, SublayerId
from lit_prune.plan.healing import Distillation, HealingReport, HealingSettings, LoraHealing
from lit_prune.plan.joined import joined
from lit_prune.plan.manners import manners_in_words
from lit_prune.plan.methods import Method, Recipe, method_names, read_method
from lit_prune.plan.prune_plan import PLAN_FILE, SETTINGS, PrunePlan, package_versions
from lit_prune.plan.registry import Named, Registry, create, described, with_defaults
from lit_prune.plan.steps import ModelFacts, PruneStep
from lit_prune.plan.unseen import error_of_ratio, interval_of, quantile_of_t, unseen_in_words

__all__ = [
    "KINDS",
    "MAX_BLOCKS",
    "PLAN_FILE",
    "SETTINGS",
    "Candidate",
    "Distillation",
    "HealingReport",
    "HealingSettings",
    "LoraHealing",
    "Method",
    "ModelFacts",
    "Named",
    "PrunePlan",
    "PruneStep",
    "Recipe",
    "Registry",
    "Scores",
    "SublayerId",
    "create",
    "described",
    "error_of_ratio",
    "interval_of",
    "joined",
    "manners_in_words",
    "method_names",
    "package_versions",
    "quantile_of_t",
    "read_method",
    "unseen_in_words",
    "with_defaults",
]
