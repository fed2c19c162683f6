"""Models written for others to load. What is written is read back and compared before it counts as saved."""

from lit_prune.export.card import CARD_FILE, usage
from lit_prune.export.folder import require_empty, save
from lit_prune.export.formats import FORMATS, export_model, require_free
from lit_prune.export.plans import PLAN_FORMATS, plan_of_config
from lit_prune.export.recipe import CHANGES_FILE, Recipe, rebuild, recipe_of

__all__ = [
    "CARD_FILE",
    "CHANGES_FILE",
    "FORMATS",
    "PLAN_FORMATS",
    "Recipe",
    "export_model",
    "plan_of_config",
    "rebuild",
    "recipe_of",
    "require_empty",
    "require_free",
    "save",
    "usage",
]
