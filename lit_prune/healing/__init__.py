"""How a pruned model is mended. Decides nothing about what is removed."""

from lit_prune.healing.compensation import COMPENSATIONS, Compensation, create_compensation, fold_factor
from lit_prune.healing.lora import LoraHealing, adapters_off, attach_lora, attached_lora, merge_lora

__all__ = [
    "COMPENSATIONS",
    "Compensation",
    "LoraHealing",
    "adapters_off",
    "attach_lora",
    "attached_lora",
    "create_compensation",
    "fold_factor",
    "merge_lora",
]
