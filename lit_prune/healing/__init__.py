"""How a pruned model is mended. Decides nothing about what is removed."""

from lit_prune.healing.lora import LoraHealing, adapters_off, attach_lora, attached_lora, merge_lora

__all__ = ["LoraHealing", "adapters_off", "attach_lora", "attached_lora", "merge_lora"]
