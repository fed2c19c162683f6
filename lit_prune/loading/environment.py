"""`LIT_PRUNE=0.2 python train.py`: pruning in a script that does not know of lit-prune.

Lightning asks entry points for callbacks whenever a Trainer is made; nothing is imported here that a script waits for.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from lit_prune.errors import LitPruneError

VARIABLE = "LIT_PRUNE"


def callbacks() -> list[Any]:
    """The callback that the environment variable `LIT_PRUNE` asks for; none where it is not set.

    Its value is the share of the parameters to remove, such as `0.2`, or a YAML mapping with options of
    `SublayerPruneCallback`, such as `{amount: 0.2, healing: true}`. The pruned model is saved as `pruned` in the run's
    folder unless `save_to` says otherwise.

    Raises:
        LitPruneError: The value is neither a number nor such a mapping.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return []
    import yaml

    callback_class = importlib.import_module("lit_prune.callbacks").SublayerPruneCallback  # of a room above
    try:
        read = yaml.safe_load(value)
        settings = dict(read) if isinstance(read, Mapping) else {"amount": float(read)}
        callback = callback_class(**{"save_to": "pruned", **settings})
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise LitPruneError(
            f"{VARIABLE}={value} is neither a share such as 0.2 nor a mapping such as '{{amount: 0.2, healing: true}}' "
            f"of options of SublayerPruneCallback: {error}"
        ) from error
    callback.from_environment = True  # trainers that lit-prune makes for itself leave it out
    return [callback]
