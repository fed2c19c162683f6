"""How a pruned model is mended. Decides nothing about what is removed."""

from lit_prune.healing.adapters import adapters_of, restore_adapters, restore_switches, switches_of
from lit_prune.healing.compensation import (
    Compensation,
    correct,
    create_compensation,
    finish,
    fold_factor,
    is_required,
    require_possible,
    scale_sublayers,
    wants_dense,
)
from lit_prune.healing.distillation import distillation_loss, taught_loss, written_requests, written_windows
from lit_prune.healing.heal import heal
from lit_prune.healing.lora import adapters_off, attach_lora, attached_lora, merge, save_adapter
from lit_prune.healing.optimization import TokenMean, adamw, checkpoint_activations
from lit_prune.healing.race import race
from lit_prune.healing.refit import Refit
from lit_prune.healing.regression import HELD_BACK
from lit_prune.healing.resuming import Stay
from lit_prune.healing.rollouts import Manners, repetition
from lit_prune.healing.solutions import Solutions
from lit_prune.healing.stage import merits_in
from lit_prune.healing.teacher import DenseTeacher, OtherTeacher, Teacher, require_same_tokens
from lit_prune.plan import Distillation, HealingReport, HealingSettings, LoraHealing

__all__ = [
    "HELD_BACK",
    "Compensation",
    "DenseTeacher",
    "Distillation",
    "HealingReport",
    "HealingSettings",
    "LoraHealing",
    "Manners",
    "OtherTeacher",
    "Refit",
    "Solutions",
    "Stay",
    "Teacher",
    "TokenMean",
    "adamw",
    "adapters_of",
    "adapters_off",
    "attach_lora",
    "attached_lora",
    "checkpoint_activations",
    "correct",
    "create_compensation",
    "distillation_loss",
    "finish",
    "fold_factor",
    "heal",
    "is_required",
    "merge",
    "merits_in",
    "race",
    "repetition",
    "require_possible",
    "require_same_tokens",
    "restore_adapters",
    "restore_switches",
    "save_adapter",
    "scale_sublayers",
    "switches_of",
    "taught_loss",
    "wants_dense",
    "written_requests",
    "written_windows",
]
