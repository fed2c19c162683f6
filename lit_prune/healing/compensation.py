"""Making up for a sublayer that goes, without training: closed forms, folded exactly into weights that stay."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lit_prune.anatomy import CORRECTIONS, LINEAR, SANDWICH, SCALE, Sublayer, find_sublayers
from lit_prune.errors import ModelError
from lit_prune.healing.folding import add_bias, add_to_projection, scale_output
from lit_prune.healing.regression import Moments
from lit_prune.measure import WhatIf, added_to_stream, counted_positions, model_inputs, output_projections, stream_means
from lit_prune.plan import Registry, create
from lit_prune.plan.prune_plan import Candidate, SublayerId
from lit_prune.surgery import record_bias

COMPENSATIONS = Registry("compensation")
NONE = "none"


class Compensation(Protocol):
    """Changes weights that stay, right before a sublayer is removed, so that less is lost."""

    def require_possible(self, model: nn.Module) -> None:
        """Refuse a model into whose weights it cannot be folded exactly.

        Raises:
            ModelError: With the reason.
        """

    def __call__(self, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
        """Measure on the batches and fold; returns what was done, in plain types, for the plan."""


@COMPENSATIONS.register("scale")
@dataclass(frozen=True)
class Scale:
    """One factor a cut: the mean of |stream behind| / |stream before| over the tokens (Prune&Comp, arXiv 2507.18212).

    The original multiplies what was written before the cut, the embedding included; since every reader norms the
    stream first, dividing what is written behind it is the same, and leaves embedding and head (tied or not) alone.
    """

    def require_possible(self, model: nn.Module) -> None:
        """See `Compensation`."""
        _require_projections(model, SCALE)

    def __call__(self, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
        """See `Compensation`."""
        candidate = Candidate((sublayer,))
        factor = stream_means(what_if, [candidate], _length_ratio)[candidate]
        fold_factor(what_if.model, sublayer, factor)
        return {"factor": factor}


class _IntoProjection:
    """What is folded into the projection that writes last before the cut."""

    def require_possible(self, model: nn.Module) -> None:
        """See `Compensation`."""
        _require_projections(model, LINEAR)

    def __call__(self, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
        """See `Compensation`."""
        writer = find_sublayers(what_if.model).writer_before(sublayer)
        if writer is None:
            return {}
        return self._fold(what_if, sublayer, writer, output_projections(what_if.model)[writer.id])

    def _fold(self, what_if: WhatIf, sublayer: SublayerId, writer: Sublayer, path: str) -> dict[str, Any]:
        raise NotImplementedError


@COMPENSATIONS.register("bias")
@dataclass(frozen=True)
class Bias(_IntoProjection):
    """The mean output of the sublayer, added where it was ("linear replacement by a bias", arXiv 2407.16286).

    It goes into the bias of the projection that writes last before the cut. One without a bias gets one, which the
    config records: the model then has these few parameters more.
    """

    def _fold(self, what_if: WhatIf, sublayer: SublayerId, writer: Sublayer, path: str) -> dict[str, Any]:
        sums = [
            (output[mask].float().sum(dim=0), mask.sum()) for _, output, mask, _ in _watched(what_if, sublayer, None)
        ]
        total, count = (what_if.summed(torch.stack(each).sum(dim=0)) for each in zip(*sums, strict=True))
        if add_bias(what_if.model.get_submodule(path), total / count):
            record_bias(what_if.model, writer.id, path.removeprefix(writer.path).removeprefix("."))
        return {"folded_into": str(writer.id)}


@COMPENSATIONS.register("linear")
@dataclass(frozen=True)
class Linear(_IntoProjection):
    """A linear map of what the projection before the cut reads, fitted to what the sublayer adds, by ridge regression.

    ReplaceMe (arXiv 2505.02819) maps that projection's output; mapping its input folds into the same matrix and can
    express more. Each token counts by the inverse square of its state's length, as the norms behind see directions.

    Args:
        ridges: Strengths to choose from, relative to the mean square of the inputs: the one with the least error on
            every fourth sequence, which is held back for it. Where none is better than nothing, nothing is changed.
    """

    ridges: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

    def _fold(self, what_if: WhatIf, sublayer: SublayerId, writer: Sublayer, path: str) -> dict[str, Any]:
        parts = (Moments(), Moments())
        number = 0
        for inputs, output, mask, weights in _watched(what_if, sublayer, path):
            rows = torch.arange(number, number + len(mask), device=mask.device)
            number += len(mask)
            held_back = (rows % HELD_BACK == HELD_BACK - 1)[:, None]
            for part, chosen in zip(parts, (mask & ~held_back, mask & held_back), strict=True):
                part.add(inputs[chosen].float(), output[chosen].float(), weights[chosen])
        fitted, checked = (part.mapped(what_if.summed) for part in parts)
        ridge, explained = min(
            ((each, checked.explained(fitted.solved(each))) for each in self.ridges), key=lambda pair: -pair[1]
        )
        if explained <= 0:
            return {"explained": 0.0}
        add_to_projection(what_if.model.get_submodule(path), (fitted + checked).solved(ridge))
        return {"folded_into": str(writer.id), "ridge": ridge, "explained": explained}


HELD_BACK = 4
"""One sequence of so many chooses the ridge."""


def create_compensation(spec: Any) -> Compensation | None:
    """A compensation by its name, or a mapping with `name` and options; None for `none`.

    Raises:
        LitPruneError: The name is unknown, or the options do not fit.
    """
    return None if spec == NONE else cast(Compensation, create(COMPENSATIONS, spec))


def require_possible(compensation: Compensation, model: nn.Module) -> None:
    """Ask a compensation whether it can be folded into a model; one of a user's own may have nothing to say to that.

    Raises:
        ModelError: It cannot.
    """
    getattr(compensation, "require_possible", lambda model: None)(model)


def correct(compensation: Compensation, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
    """Let a compensation fold what makes up for a sublayer; returns what it says of that.

    Raises:
        ModelError: It says something that cannot stand in a plan; a user's own may say nothing.
    """
    said: Any = compensation(what_if, sublayer)
    try:
        facts = json.loads(json.dumps({} if said is None else said, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(f"what a compensation returns is for the plan, in plain types: {error}") from error
    if not isinstance(facts, dict):
        raise ModelError(f"a compensation returns a mapping of what it did, for the plan; found {said!r}")
    return facts


def fold_factor(model: nn.Module, sublayer: SublayerId, factor: float) -> None:
    """Make the stream in the place of a sublayer `factor` times as long, by dividing what is written behind it.

    Args:
        model: With the sublayer still there.
        sublayer: What will go.
        factor: Above 0.
    """
    anatomy = find_sublayers(model)
    projections = output_projections(model)
    for each in anatomy.behind(sublayer):
        path = each.output if each.form == SANDWICH else projections[each.id]
        scale_output(model.get_submodule(path), 1 / factor)


def _require_projections(model: nn.Module, correction: str) -> None:
    anatomy = find_sublayers(model)
    forms = {each.form for each in anatomy.sublayers}
    if without := [form for form in sorted(forms) if correction not in CORRECTIONS[form]]:
        raise ModelError(
            f"this compensation cannot be folded exactly into a {anatomy.model_type} model, whose blocks are "
            f"{without[0]!r}"
        )
    if forms == {SANDWICH}:
        return
    known = output_projections(model)
    if unknown := [each for each in anatomy.sublayers if each.id not in known]:
        raise ModelError(
            f"this compensation cannot be folded exactly into this {anatomy.model_type} model: {unknown[0].id} "
            "does not end in one linear layer"
        )


def _length_ratio(before: Tensor, after: Tensor) -> Tensor:
    ratio: Tensor = after.norm(dim=-1) / before.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return ratio


def _watched(
    what_if: WhatIf, sublayer: SublayerId, path: str | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What one sublayer does on every batch.

    Yields:
        Inputs of the module at `path` and what the sublayer adds, [batch, seq, ...] each; which tokens count, and their
        weights, [batch, seq].
    """
    anatomy = find_sublayers(what_if.model)
    own = anatomy[sublayer]
    block = what_if.model.get_submodule(f"{anatomy.blocks_path}.{anatomy.position(sublayer.block)}")
    seen: dict[str, Tensor] = {}
    with what_if.running(), _hooked(what_if.model, own, block, path, seen):
        for batch in what_if.passes():
            what_if.model(**model_inputs(what_if.model, batch), use_cache=False)
            mask = counted_positions(batch)
            added = seen["added"].reshape(*mask.shape, -1)
            behind = seen["stream"].reshape(*mask.shape, -1).float() + added.float()
            inputs = seen.get("inputs", added).reshape(*mask.shape, -1)
            yield inputs, added, mask, 1 / behind.square().mean(dim=-1).clamp(min=torch.finfo(torch.float32).eps)


@contextmanager
def _hooked(model: Any, own: Sublayer, block: nn.Module, path: str | None, seen: dict[str, Tensor]) -> Iterator[None]:
    def first(_: Any, args: Any, kwargs: Any) -> Tensor:
        return cast(Tensor, args[0] if args else kwargs["hidden_states"])

    def keep(name: str, value: Callable[..., Tensor]) -> Callable[..., None]:
        # A copy of what may be added to in place.
        return lambda *arguments: seen.__setitem__(name, value(*arguments).clone())

    handles = [
        block.register_forward_pre_hook(keep("stream", first), with_kwargs=True),
        model.get_submodule(own.output).register_forward_hook(
            keep("added", lambda _, args, kwargs, output: added_to_stream(own, args, kwargs, output)), with_kwargs=True
        ),
    ]
    if path is not None:
        handles.append(model.get_submodule(path).register_forward_pre_hook(keep("inputs", first), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
