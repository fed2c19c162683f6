"""lit-prune: smaller, faster language models inside the PyTorch Lightning loop that you already have."""

from lit_prune.data import TextDataModule
from lit_prune.errors import LitPruneError
from lit_prune.healing import LoraHealing
from lit_prune.models import load, load_tokenizer
from lit_prune.module import LitCausalLM
from lit_prune.plan import PrunePlan
from lit_prune.pruner import apply_plan, prune

__all__ = [
    "LitCausalLM",
    "LitPruneError",
    "LoraHealing",
    "PrunePlan",
    "TextDataModule",
    "apply_plan",
    "load",
    "load_tokenizer",
    "prune",
]
