"""The LightningModule around a language model, and checkpoints whose structure is restored before their weights."""

from lit_prune.training.checkpoint import (
    STRUCTURE_KEY,
    follow_checkpoints,
    load_checkpoint,
    read_facts,
    restore_structure,
    structure_of,
)
from lit_prune.training.lit_causal_lm import LitCausalLM

__all__ = [
    "STRUCTURE_KEY",
    "LitCausalLM",
    "follow_checkpoints",
    "load_checkpoint",
    "read_facts",
    "restore_structure",
    "structure_of",
]
