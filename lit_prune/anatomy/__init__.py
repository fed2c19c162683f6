"""Where the sublayers of a decoder-only Hugging Face model are. Knows structure only: changes and measures nothing."""

from lit_prune.anatomy.structure import Anatomy, Part, Sublayer, count_parameters, find_sublayers, language_model
from lit_prune.anatomy.stubs import AttentionStub, MlpStub

__all__ = [
    "Anatomy",
    "AttentionStub",
    "MlpStub",
    "Part",
    "Sublayer",
    "count_parameters",
    "find_sublayers",
    "language_model",
]
