"""Text to windows of tokens: sources, a user's own examples, calibration batches, and the LightningDataModule."""

from lit_prune.data.examples import (
    Example,
    example_batches,
    read_examples,
)
from lit_prune.data.text_data import (
    TextDataModule,
    calibration_batches,
    drawn_windows,
    fingerprint,
    require_positive,
)
from lit_prune.data.texts import (
    BUILTIN,
    read_texts,
    require_source,
    share_out,
)

__all__ = [
    "BUILTIN",
    "Example",
    "TextDataModule",
    "calibration_batches",
    "drawn_windows",
    "example_batches",
    "fingerprint",
    "read_examples",
    "read_texts",
    "require_positive",
    "require_source",
    "share_out",
]
