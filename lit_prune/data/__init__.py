"""Text to windows of tokens: sources, a user's own examples, calibration batches, and the LightningDataModule."""

from lit_prune.data.batches import batch_of, calibration_batches, fingerprint, require_positive
from lit_prune.data.chat import require_answers
from lit_prune.data.examples import Example, example_batches, padded, read_examples
from lit_prune.data.text_data import TextDataModule, window_loader
from lit_prune.data.texts import BUILTIN, MIXED, read_texts, require_source, share_out
from lit_prune.data.tokens import room
from lit_prune.data.windows import (
    draw_windows,
    drawn_windows,
    interleaved,
    token_windows,
)

__all__ = [
    "BUILTIN",
    "MIXED",
    "Example",
    "TextDataModule",
    "batch_of",
    "calibration_batches",
    "draw_windows",
    "drawn_windows",
    "example_batches",
    "fingerprint",
    "interleaved",
    "padded",
    "read_examples",
    "read_texts",
    "require_answers",
    "require_positive",
    "require_source",
    "room",
    "share_out",
    "token_windows",
    "window_loader",
]
