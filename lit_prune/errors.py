"""The errors a user can meet. Each message says what was found, what was expected, and what to do about it."""

from __future__ import annotations


class LitPruneError(Exception):
    """Base of every error that lit-prune raises on purpose."""


class AnatomyError(LitPruneError):
    """The model's structure is not understood: no decoder blocks, an encoder-decoder, an unknown block layout."""


class PlanError(LitPruneError):
    """A plan is damaged, of a newer schema, or made for another model."""


class BudgetError(LitPruneError):
    """What is asked for cannot be reached: an amount outside (0, 1), too much for the kinds allowed, bad schedule."""


class DataError(LitPruneError):
    """Text or batches that cannot be used: no validation batches, no `input_ids`, text shorter than one window."""


class MeasureError(LitPruneError):
    """A measurement has no meaning: NaN or infinite losses."""


class ModelError(LitPruneError):
    """A model cannot be found, loaded or saved."""
