"""What optimizers keep of parameters, while some of these go: the optimizer stays the same object (schedulers hold it).

Groups stay too, though they may be empty: schedulers keep one learning rate for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from lit_prune.errors import LitPruneError

OWN = ("param_groups", "state", "defaults")
"""Where every optimizer of torch keeps its parameters."""


def forget_parameters(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Drop parameters from an optimizer, with their state, names and gradients; the rest keep theirs.

    L-BFGS keeps one history of all parameters together, and begins it anew. Optimizers inside it forget them, too.
    """
    dropped = {id(parameter): parameter for parameter in parameters}
    held = cut_groups(optimizer.param_groups, lambda parameter: id(parameter) not in dropped)
    for parameter in dropped.values():
        optimizer.state.pop(parameter, None)
        parameter.grad = None
    if held and isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        optimizer._params, optimizer._numel_cache = optimizer.param_groups[0]["params"], None
    for other in _inner(optimizer):
        forget_parameters(other, dropped.values())


def cut_groups(groups: Sequence[Mapping[str, Any]], keeps: Callable[[Any], bool]) -> bool:
    """Drop entries of `params` from an optimizer's groups where `keeps` says no, with the names that go by them.

    Entries are parameters or what stands for them. The groups are changed in place; returns whether any entry has gone.
    """
    flags = [list(map(keeps, group["params"])) for group in groups]
    for group, kept in zip(groups, flags, strict=True):
        for entries in [group["params"], *_names(group)]:
            entries[:] = compress(entries, kept)
    return not all(map(all, flags))


def require_forgetful(optimizer: Optimizer) -> None:
    """Refuse with a LitPruneError an optimizer that keeps parameters where nobody knows how to drop some of them."""
    shared = [group["params"] for group in optimizer.param_groups]
    for name, value in vars(optimizer).items():
        if name in OWN or any(value is params for params in shared) or isinstance(value, Optimizer):
            continue
        if _holds_parameters(value) and not (isinstance(optimizer, LBFGS) and name == "_params"):
            raise LitPruneError(
                f"{type(optimizer).__name__} keeps parameters of its own in `{name}`, from which those that are pruned "
                "cannot be dropped; use an optimizer that keeps them in its groups and state alone, as torch's do"
            )
    for other in _inner(optimizer):
        require_forgetful(other)


def _names(group: Mapping[str, Any]) -> list[list[str]]:
    """Lists of a group with one name for each parameter, such as those of an optimizer over `named_parameters`."""
    lists = [value for name, value in group.items() if name != "params" and isinstance(value, list)]
    length = len(group["params"])
    return [value for value in lists if len(value) == length and all(isinstance(text, str) for text in value)]


def _inner(optimizer: Optimizer) -> list[Optimizer]:
    """Optimizers that one is around, such as that of SAM, which may share its groups with it."""
    return [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]


def _holds_parameters(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_parameters, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_parameters, value))
    return isinstance(value, nn.Parameter)
