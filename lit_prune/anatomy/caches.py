"""A model's keys and values, which are `cache` since transformers 5.24 and `past_key_values` before and in own code."""

from __future__ import annotations

import inspect
from typing import Any


def cache_of(output: Any) -> Any:
    """The cache that a model's output holds; None where it holds none."""
    # Asked for by its old name, a new transformers warns.
    return output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)


def cache_option(model: Any, cache: Any) -> dict[str, Any]:
    """The keyword argument with which `model(...)` goes on from a cache, by the name in its signature."""
    names = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}
