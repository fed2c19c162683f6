"""Making up for a sublayer that goes, without training: closed forms, folded exactly into weights that stay."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lit_prune.anatomy import CORRECTIONS, LINEAR, SANDWICH, SCALE, Sublayer, find_sublayers
from lit_prune.errors import ModelError
from lit_prune.healing.folding import add_bias, add_to_projection, scale_output
from lit_prune.healing.regression import Moments, held_back
from lit_prune.healing.solutions import Solutions
from lit_prune.healing.teacher import DenseTeacher
from lit_prune.measure import WhatIf, counted_positions, model_inputs, stream_means
from lit_prune.plan import Candidate, Registry, SublayerId, create, with_defaults
from lit_prune.surgery import added_to_stream, hidden_states, output_projections, record_bias

COMPENSATIONS = Registry("compensation")


class Compensation:
    """Changes weights that stay, right before a sublayer is removed, so that less is lost.

    A user's own compensation may be a subclass, or any function or object that is called the same way.

    Attributes:
        correction: How every sublayer must end for the compensation to be folded exactly, `SCALE` or `LINEAR` of
            `lit_prune.anatomy`; None asks for nothing.
        required: Whether a model that it is not possible for is refused; else it is left out there.
        wants_dense: Whether it is not called for each removal, and `finish` is when all are done, with the dense model.
    """

    correction: ClassVar[str | None] = None
    wants_dense: ClassVar[bool] = False
    required: bool = True

    def __call__(self, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
        """Measure what the sublayer does on the batches and fold it.

        Returns:
            What was done, in plain types, for the plan.
        """
        raise NotImplementedError

    def finish(self, what_if: WhatIf, teacher: DenseTeacher, solutions: Solutions | None = None) -> dict[str, Any]:
        """Change weights that stay when the removals are done.

        Args:
            what_if: The measure, over the batches to fit on; its model has lost what goes.
            teacher: The model as it was before.
            solutions: Keeps what was found from one run to the next; nothing is kept when None.

        Returns:
            What was done, in plain types, for the plan.
        """
        return {}

    def require_possible(self, model: nn.Module) -> None:
        """Refuse a model into whose weights the compensation cannot be folded exactly.

        Raises:
            ModelError: The message gives the reason.
        """
        if self.correction is None:
            return
        anatomy = find_sublayers(model)
        forms = {sublayer.form for sublayer in anatomy.sublayers}
        if without := [form for form in sorted(forms) if self.correction not in CORRECTIONS[form]]:
            raise ModelError(
                f"this compensation cannot be folded exactly into a {anatomy.model_type} model, whose blocks are "
                f"{without[0]!r}"
            )
        known = anatomy if forms == {SANDWICH} else output_projections(model)
        if unknown := [sublayer for sublayer in anatomy.sublayers if sublayer.id not in known]:
            raise ModelError(
                f"this compensation cannot be folded exactly into this {anatomy.model_type} model: {unknown[0].id} "
                "does not end in one linear layer"
            )


@COMPENSATIONS.register("scale")
@dataclass(frozen=True)
class Scale(Compensation):
    """One factor a cut: the mean of |stream behind| / |stream before| over the tokens (Prune&Comp, arXiv 2507.18212).

    The original multiplies what was written before the cut, the embedding included; since every reader norms the
    stream first, dividing what is written behind it is the same, and leaves embedding and head (tied or not) alone.
    """

    correction = SCALE

    def __call__(self, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
        """Measure the factor and fold it; the plan gets it as `factor`."""
        (factor,) = stream_means(what_if, [Candidate((sublayer,))], _length_ratio).values()
        fold_factor(what_if.model, sublayer, factor)
        return {"factor": factor}


@COMPENSATIONS.register("bias")
@dataclass(frozen=True)
class Bias(Compensation):
    """The mean output of the sublayer, added where it was ("linear replacement by a bias", arXiv 2407.16286).

    It goes into the bias of the projection that writes last before the cut. One without a bias gets one, which the
    config records: the model then has these few parameters more.
    """

    correction = LINEAR

    def __call__(self, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
        """Measure the mean and fold it; the plan gets the sublayer that it was `folded_into`."""
        writer, path = _projection_before(what_if.model, sublayer)
        if writer is None:
            return {}
        watched = _watched(what_if, sublayer, path)
        sums = [(output[mask].float().sum(dim=0), mask.sum()) for _, output, mask, _ in watched]
        total, count = (what_if.processes.sum(torch.stack(parts).sum(dim=0)) for parts in zip(*sums, strict=True))
        if add_bias(what_if.model.get_submodule(path), total / count):
            record_bias(what_if.model, writer.id, path.removeprefix(writer.path).removeprefix("."))
        return {"folded_into": str(writer.id)}


@COMPENSATIONS.register("linear")
@dataclass(frozen=True)
class Linear(Compensation):
    """A linear map of what the projection before the cut reads, fitted to what the sublayer adds, by ridge regression.

    ReplaceMe (arXiv 2505.02819) maps that projection's output; mapping its input folds into the same matrix and can
    express more. Each token counts by the inverse square of its state's length, as the norms behind see directions.

    Args:
        ridges: The strengths to choose from, relative to the mean square of the inputs. The one with the least error
            on every fourth sequence is taken, which is held back for it; where none is better than nothing, nothing
            is changed.
    """

    correction = LINEAR
    ridges: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

    def __call__(self, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
        """Fit the map and fold it; the plan gets `folded_into`, `ridge` and the share that is `explained`."""
        writer, path = _projection_before(what_if.model, sublayer)
        if writer is None:
            return {}
        fitted, checked = (moments.mapped(what_if.processes.sum) for moments in _moments(what_if, sublayer, path))
        shares = {ridge: checked.explained(fitted.solved(ridge)) for ridge in self.ridges}
        ridge, explained = max(shares.items(), key=lambda pair: pair[1])
        if explained <= 0:
            return {"explained": 0.0}
        add_to_projection(what_if.model.get_submodule(path), (fitted + checked).solved(ridge))
        return {"folded_into": str(writer.id), "ridge": ridge, "explained": explained}


def create_compensation(spec: Any) -> Compensation | None:
    """A compensation by its name, or a mapping with `name` and options; None for `none`."""
    return None if spec == "none" else cast(Compensation, create(COMPENSATIONS, spec))


def require_possible(compensation: Compensation | None, model: nn.Module) -> None:
    """Ask a compensation whether it can be folded into a model; one of a user's own may have nothing to say to that."""
    if compensation is not None:
        with_defaults(Compensation, compensation).require_possible(model)


def correct(compensation: Compensation, what_if: WhatIf, sublayer: SublayerId) -> dict[str, Any]:
    """Let a compensation fold what makes up for a sublayer; returns what it says of that.

    Raises:
        ModelError: It says something that cannot stand in a plan; a user's own may say nothing.
    """
    return _plain(compensation(what_if, sublayer))


def finish(
    compensation: Compensation, what_if: WhatIf, teacher: DenseTeacher, solutions: Solutions | None = None
) -> dict[str, Any]:
    """Let a compensation change what stays when the removals are done; returns what it says of that.

    Raises:
        ModelError: It says something that cannot stand in a plan.
    """
    return _plain(with_defaults(Compensation, compensation).finish(what_if, teacher, solutions))


def is_required(compensation: Compensation | None) -> bool:
    """Whether a model that a compensation is not possible for is to be refused."""
    return compensation is not None and with_defaults(Compensation, compensation).required


def wants_dense(compensation: Compensation | None) -> bool:
    """Whether a compensation is to be finished, with the dense model, when the removals are done."""
    return compensation is not None and with_defaults(Compensation, compensation).wants_dense


def _plain(said: object) -> dict[str, Any]:
    try:
        facts = json.loads(json.dumps({} if said is None else said, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(f"what a compensation returns is for the plan, in plain types: {error}") from error
    if not isinstance(facts, dict):
        raise ModelError(f"a compensation returns a mapping of what it did, for the plan; found {said!r}")
    return facts


def fold_factor(model: nn.Module, sublayer: SublayerId, factor: float) -> None:
    """Make the stream in the place of a sublayer `factor` (above 0) times as long, by dividing what is written behind.

    The sublayer, which will go, is still there.
    """
    scale_sublayers(model, find_sublayers(model).behind(sublayer), 1 / factor, output_projections(model))


def scale_sublayers(
    model: nn.Module, sublayers: Iterable[Sublayer], factor: float, projections: Mapping[SublayerId, str]
) -> None:
    """Multiply what sublayers add to the stream: each ends in a norm, or in one of the output projections."""
    for sublayer in sublayers:
        path = sublayer.output if sublayer.form == SANDWICH else projections[sublayer.id]
        scale_output(model.get_submodule(path), factor)


def _projection_before(model: nn.Module, sublayer: SublayerId) -> tuple[Sublayer | None, str]:
    """The sublayer that writes last before another, and the path of its projection; None where nothing does."""
    writer = find_sublayers(model).writer_before(sublayer)
    return writer, "" if writer is None else output_projections(model)[writer.id]


def _length_ratio(before: Tensor, after: Tensor) -> Tensor:
    return cast(Tensor, after.norm(dim=-1) / before.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny))


def _moments(what_if: WhatIf, sublayer: SublayerId, path: str) -> tuple[Moments, Moments]:
    """Moments of what a projection reads with what a sublayer adds: of most sequences, and of those held back."""
    fitted, checked = Moments(), Moments()
    number = 0
    for inputs, output, mask, weights in _watched(what_if, sublayer, path):
        rows = torch.arange(number, number + len(mask), device=mask.device)
        number += len(mask)
        checks = held_back(rows)[:, None]
        for moments, chosen in ((fitted, mask & ~checks), (checked, mask & checks)):
            moments.add(inputs[chosen].float(), output[chosen].float(), weights[chosen])
    return fitted, checked


def _watched(what_if: WhatIf, sublayer: SublayerId, path: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What one sublayer does, batch by batch.

    Yields:
        The inputs of the module at `path` [batch, seq, in], what the sublayer adds [batch, seq, hidden], which tokens
        count [batch, seq], and their weights [batch, seq].
    """
    model, anatomy = what_if.model, find_sublayers(what_if.model)
    own, block = anatomy[sublayer], anatomy.block_list(model)[anatomy.position(sublayer.block)]
    seen: dict[str, Tensor] = {}

    # Copies, since what is seen may be added to in place.
    def read(name: str, _: Any, args: Any, kwargs: Any) -> None:
        seen[name] = hidden_states(args, kwargs).clone()

    def wrote(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["added"] = added_to_stream(own, args, kwargs, output).clone()

    with (
        what_if.running(),
        block.register_forward_pre_hook(partial(read, "stream"), with_kwargs=True),
        model.get_submodule(own.output).register_forward_hook(wrote, with_kwargs=True),
        model.get_submodule(path).register_forward_pre_hook(partial(read, "inputs"), with_kwargs=True),
    ):
        for batch in what_if.passes():
            model(**model_inputs(model, batch), use_cache=False)
            mask = counted_positions(batch)
            stream, inputs, added = (seen[name].reshape(*mask.shape, -1) for name in ("stream", "inputs", "added"))
            behind = stream.float() + added.float()
            yield inputs, added, mask, 1 / behind.square().mean(dim=-1).clamp(min=torch.finfo(torch.float32).eps)
