"""A pruned model and the dense one on the same text, one block at a time: what the pruned stream is, and should be.

Of every sequence one state of each model is held: the one behind the last block that it has passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import PARALLEL_FORMS, Anatomy, Sublayer, find_sublayers
from lit_prune.errors import ModelError
from lit_prune.healing.teacher import DenseTeacher
from lit_prune.measure import Portion, Trace, WhatIf, counted_positions, input_ids_of
from lit_prune.plan import SublayerId
from lit_prune.surgery import added_to_stream, evaluating, first_tensor, hidden_states, run_few_tokens

MOST_FROM_ELSEWHERE = 0.02
"""The share of what a block adds to the stream that its sublayers need not account for: rounding."""


@dataclass(frozen=True)
class Point:
    """A point of the stream: behind a block, or `between` its attention and its FFN; the block by its place."""

    position: int
    between: bool = False


@dataclass(frozen=True)
class Site:
    """Sublayers that stay and write into the stream before the next one reads it: one, or both of a parallel block.

    Attributes:
        sublayers: The sublayers, attention first.
        point: The point behind them.
        target: The point behind all that the dense model writes before the next sublayer that stays: what was removed
            right behind the site is made up for at it.
    """

    sublayers: tuple[Sublayer, ...]
    point: Point
    target: Point

    @property
    def name(self) -> str:
        """The addresses of the sublayers."""
        return "+".join(str(sublayer.id) for sublayer in self.sublayers)


@dataclass(frozen=True)
class Seen:
    """What is seen at a site, of those tokens of one batch that count.

    Attributes:
        given: What each of the watched modules was given, [tokens, in], by its path.
        put_out: What each of the watched modules put out, [tokens, out], by its path.
        stream: The stream of the pruned model behind the site, float32 [tokens, hidden].
        target: The stream of the dense model that it should be, float32 [tokens, hidden].
        sequences: The number of each token's sequence among all of all processes, [tokens].
    """

    given: Mapping[str, Tensor]
    put_out: Mapping[str, Tensor]
    stream: Tensor
    target: Tensor
    sequences: Tensor


class Lockstep:
    """The pruned model of a measure, and the dense one that is still in it, side by side on the measure's batches.

    Args:
        what_if: The measure: its model, batches, processes and progress. The work counts as its own.
        teacher: The dense model that the measure's model was, and that has lost sublayers since.

    Attributes:
        sites: Where the pruned stream can be changed towards the dense one, front to back.
        scales: What each block multiplies the outputs of its sublayers by, by its place in the list.

    Raises:
        ModelError: A block adds something else to the stream than what its sublayers put out.
    """

    def __init__(self, what_if: WhatIf, teacher: DenseTeacher) -> None:
        self._what_if, self._teacher, self._model = what_if, teacher, what_if.model
        self._pruned = find_sublayers(self._model)
        with teacher.restored():
            self._dense = find_sublayers(self._model)
            self.scales = residual_scales(self._model, self._dense)
        self.sites = sites_of(self._dense, self._pruned)
        self._pairs = [self._pair(index) for index in range(len(what_if.batches))]
        self._numbers = self._sequence_numbers()
        self._done, self._todo = 0, self._num_blocks() * len(self._pairs)

    @property
    def num_sequences(self) -> int:
        """How many sequences with tokens that count all processes have together."""
        return self._num_sequences

    def observed(self, site: Site, watched: Sequence[str]) -> Iterator[Seen]:
        """Run both models up to a site, batch by batch; sites are observed in their order, each once.

        Args:
            site: One of `sites`.
            watched: Paths of modules in its sublayers, which are called once in a pass.
        """
        for (dense, pruned), numbers in zip(self._pairs, self._numbers, strict=True):
            with self._teacher.restored():
                target = self._target(dense, site)
            found = self._stream(pruned, site, watched)
            # The first token is attended to by all others for want of anything better, and is like no other.
            mask = counted_positions(pruned.inputs)
            mask = (mask & (mask.cumsum(dim=1) > 1)).to(target.device)
            yield Seen(
                {path: value[mask] for path, value in found.given.items()},
                {path: value[mask] for path, value in found.put_out.items()},
                found.behind(site.sublayers[-1].id, self.scales[site.point.position])[mask],
                target.float()[mask],
                numbers.to(mask.device)[:, None].expand_as(mask)[mask],
            )

    def _target(self, dense: Portion, site: Site) -> Tensor:
        """The dense stream at the target of a site; the dense model has passed the site's block then."""
        here, target = site.point.position, site.target
        with watched_block(self._model, self._dense, target.position) as found:
            if (at := dense.trace.start(here + 1)) <= here:
                dense.trace.advance(dense.blocks, at, here + 1, dense.logits)
            state = dense.trace.states[here]
            if target.position > here:
                state = dense.trace.fork(dense.blocks, here + 1, target.position + 1, dense.logits)
        self._ran(target.position + 1 - at, site)
        if not target.between:
            return first_tensor(state)
        return found.behind(SublayerId(self._dense.blocks[target.position], "attention"), self.scales[target.position])

    def _stream(self, pruned: Portion, site: Site, watched: Sequence[str]) -> _Found:
        here = site.point.position
        if (at := pruned.trace.start(here)) < here:
            pruned.trace.advance(pruned.blocks, at, here, pruned.logits)
        with watched_block(self._model, self._pruned, here, watched) as found:
            pruned.trace.fork(pruned.blocks, here, here + 1, pruned.logits)
        self._ran(here + 1 - at, site)
        return found

    def _ran(self, num_blocks: int, site: Site) -> None:
        self._done += num_blocks
        self._what_if.ran(num_blocks, self._done, self._todo, site.name)

    def _num_blocks(self) -> int:
        """How many blocks of each batch run in all."""
        if not self.sites:
            return 0
        ahead = sum(site.target.position - site.point.position for site in self.sites)
        return 2 * self.sites[-1].point.position + 1 + ahead + len(self.sites)

    def _pair(self, index: int) -> tuple[Portion, Portion]:
        what_if = self._what_if
        batch, offload = what_if.batches[index], what_if.states.offload
        place = (index, 0, len(input_ids_of(batch)))
        dense, pruned = (
            Portion(what_if.objective, anatomy, batch, place, Trace(offload=offload))
            for anatomy in (self._dense, self._pruned)
        )
        return dense, pruned

    def _sequence_numbers(self) -> list[Tensor]:
        """The number of each sequence of each batch, in one order for all processes."""
        processes, start, numbers = self._what_if.processes, 0, []
        for batch in self._what_if.batches:
            shares = torch.zeros(processes.size, dtype=torch.int64)
            shares[processes.rank] = int(counted_positions(batch).any(dim=1).sum())
            shares = processes.sum(shares)
            first = start + int(shares[: processes.rank].sum())
            numbers.append(torch.arange(first, first + len(input_ids_of(batch))))
            start += int(shares.sum())
        self._num_sequences = start
        return numbers


@dataclass
class _Found:
    """What hooks have seen of one run of one block; copies, as some blocks add in place."""

    stream: Tensor | None = None
    behind_all: Tensor | None = None
    added: dict[SublayerId, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    put_out: dict[str, Tensor] = field(default_factory=dict)

    def enter(self, _: Any, args: Any, kwargs: Any) -> None:
        """Before the block."""
        self.stream = _copied(hidden_states(args, kwargs))

    def leave(self, _: Any, __: Any, output: Any) -> None:
        """Behind the block."""
        self.behind_all = _copied(first_tensor(output))

    def add(self, sublayer: Sublayer, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Behind what joins the stream."""
        self.added[sublayer.id] = _copied(added_to_stream(sublayer, args, kwargs, output))

    def see(self, path: str, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Behind a watched module."""
        assert self.stream is not None
        for seen, tensor in ((self.given, hidden_states(args, kwargs)), (self.put_out, first_tensor(output))):
            seen[path] = _copied(tensor).reshape(*self.stream.shape[:-1], tensor.shape[-1])

    def behind(self, last: SublayerId, scale: float) -> Tensor:
        """The stream behind a sublayer, float32 [batch, seq, hidden]."""
        assert self.stream is not None
        written = [added for sublayer, added in self.added.items() if sublayer <= last]
        return self.stream + scale * torch.stack(written).sum(dim=0).view_as(self.stream)


def sites_of(dense: Anatomy, pruned: Anatomy) -> list[Site]:
    """Where a pruned stream can be changed towards the dense one, front to back: from the first removal on.

    The sublayers right before the first removal are there as well, as nothing reads the stream between them and it.
    """
    sites: list[Site] = []
    changed = False
    for group in _written_together(dense):
        kept = tuple(sublayer for sublayer in group if sublayer.id in pruned)
        last = group[-1]
        position = dense.position(last.id.block)
        alone = SublayerId(last.id.block, "mlp") not in dense
        point = Point(position, between=last.id.kind == "attention" and not alone)
        if len(kept) < len(group) and not changed:
            # All before the first removal is as it was, but for what writes right before it.
            changed, sites = True, sites[-1:] if not kept else []
        if kept:
            sites.append(Site(kept, point, point))
        elif sites:
            sites[-1] = Site(sites[-1].sublayers, sites[-1].point, point)
    return sites if changed else []


def _written_together(anatomy: Anatomy) -> list[tuple[Sublayer, ...]]:
    """Sublayers between which nothing reads the stream: those of a parallel block; any other is alone."""
    groups: list[tuple[Sublayer, ...]] = []
    for sublayer in anatomy.sublayers:
        before = groups[-1][-1] if groups else None
        together = before is not None and before.id.block == sublayer.id.block and sublayer.form in PARALLEL_FORMS
        groups = [*groups[:-1], (*groups[-1], sublayer)] if together else [*groups, (sublayer,)]
    return groups


@contextmanager
def watched_block(
    model: nn.Module, anatomy: Anatomy, position: int, paths: Sequence[str] = ()
) -> Iterator[_Found]:
    """See what goes on in a block, and in modules of it that are called once, in a `with` block."""
    found = _Found()
    block = anatomy.block_list(model)[position]
    with ExitStack() as hooks:
        hooks.enter_context(block.register_forward_pre_hook(found.enter, with_kwargs=True))
        for sublayer in anatomy.sublayers:
            if anatomy.position(sublayer.id.block) == position:
                module = model.get_submodule(sublayer.output)
                hooks.enter_context(module.register_forward_hook(partial(found.add, sublayer), with_kwargs=True))
        for path in paths:
            module = model.get_submodule(path)
            hooks.enter_context(module.register_forward_hook(partial(found.see, path), with_kwargs=True))
        hooks.enter_context(block.register_forward_hook(found.leave))
        yield found


def residual_scales(model: nn.Module, anatomy: Anatomy) -> list[float]:
    """What each block multiplies the outputs of its sublayers by before it adds them to the stream: 1 in most models.

    Raises:
        ModelError: What a block adds to its input is something else.
    """
    with ExitStack() as hooks, evaluating(model):
        founds = [hooks.enter_context(watched_block(model, anatomy, number)) for number in range(len(anatomy.blocks))]
        run_few_tokens(model)
    precision = torch.finfo(next(model.parameters()).dtype).eps
    return [
        _scale(found, precision, f"block {number} of this {anatomy.model_type} model")
        for number, found in zip(anatomy.blocks, founds, strict=True)
    ]


def _scale(found: _Found, precision: float, block: str) -> float:
    if not found.added:
        return 1.0
    assert found.stream is not None and found.behind_all is not None
    written = torch.stack([*found.added.values()]).sum(dim=0).view_as(found.stream)
    change = found.behind_all - found.stream
    scale = float((change * written).sum() / written.square().sum().clamp(min=torch.finfo(torch.float32).tiny))
    lost = (change - scale * written).norm() - 2 * precision * found.behind_all.norm()
    if lost > MOST_FROM_ELSEWHERE * change.norm():
        raise ModelError(
            f"{block} does not add the outputs of its sublayers to its input, each times the same number, so nothing "
            "tells what they should have put out"
        )
    return 1.0 if abs(scale - 1) < MOST_FROM_ELSEWHERE else scale


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True)
