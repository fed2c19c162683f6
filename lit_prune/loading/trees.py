"""Lightning has two import names, `lightning` and `pytorch_lightning`, each with classes of its own; both are met."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from lightning.pytorch.callbacks import Callback

TWINS = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}
TREES = ("lightning", *TWINS.values())
"""The packages that either holds."""
Known = TypeVar("Known")


def is_a(instance: object, *classes: type[Known]) -> TypeGuard[Known]:
    """Whether something is of one of these classes of `lightning`, or of the same of `pytorch_lightning`."""
    return isinstance(instance, either(*classes))


def either(*classes: type) -> tuple[type, ...]:
    """Classes of `lightning`, and the same of `pytorch_lightning` where that is imported."""
    return (*classes, *(twin for each in classes if (twin := _twin(each)) is not None))


def _twin(known: type) -> type | None:
    for name, other in TWINS.items():
        if known.__module__.startswith(f"{name}."):
            module = sys.modules.get(other + known.__module__.removeprefix(name))
            return getattr(module, known.__name__, None)
    return None


if TYPE_CHECKING:
    EitherCallback = Callback
else:

    class EitherCallback(*either(Callback)):
        """A callback of `lightning`, and of `pytorch_lightning` too where that came first: its CLI asks for one."""
