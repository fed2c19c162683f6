"""The errors a user can meet. Each message says what was found, what was expected, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What a message about an unknown name goes on with: the closest known one, nothing where none is close.

    Example:
        >>> did_you_mean("nir", ["nri", "taylor"])
        "; did you mean 'nri'?"
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
