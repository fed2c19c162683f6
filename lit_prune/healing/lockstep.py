"""A pruned model and the dense one on the same text, one block at a time: what the pruned stream is, and should be.

Of every sequence one state of each model is held: the one behind the last block that it has passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.anatomy import AFTER_BRANCH, SANDWICH, find_sublayers
from lit_prune.healing.block_stream import BlockStream, residual_scales, watched_block
from lit_prune.healing.regression import held_back
from lit_prune.healing.sites import Site, sites_of
from lit_prune.healing.teacher import DenseTeacher
from lit_prune.measure import Portion, Trace, WhatIf, counted_positions, input_ids_of
from lit_prune.plan import SublayerId
from lit_prune.surgery import first_tensor


@dataclass(frozen=True)
class Seen:
    """What is seen at a site, of those tokens of one batch that count.

    Attributes:
        given: What each of the watched modules was given, [tokens, in], by its path.
        put_out: What each of the watched modules put out, [tokens, out], by its path.
        stream: The stream of the pruned model behind the site, float32 [tokens, hidden].
        target: The stream of the dense model that it should be, float32 [tokens, hidden].
        held_back: Which tokens are of sequences that are held back from the fit, bool [tokens].
    """

    given: Mapping[str, Tensor]
    put_out: Mapping[str, Tensor]
    stream: Tensor
    target: Tensor
    held_back: Tensor


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
        self._held: list[Tensor] = []
        self._done, self._todo = 0, self._num_blocks() * len(self._pairs)

    @property
    def num_sequences(self) -> int:
        """How many sequences with tokens that count all processes have together."""
        return self._num_sequences

    def observed(self, site: Site, watched: Sequence[str], *, again: bool = False) -> Iterator[Seen]:
        """Run both models up to a site, batch by batch; sites are observed in their order.

        Args:
            site: One of `sites`.
            watched: Paths of modules in its sublayers, which are called once in a pass.
            again: Whether the site will be observed again, so that its targets are held until then.
        """
        held, self._held = self._held, []
        for index, ((dense, pruned), numbers) in enumerate(zip(self._pairs, self._numbers, strict=True)):
            if held:
                target = held[index]
            else:
                with self._teacher.restored():
                    target = self._target(dense, site)
            if again:
                self._held.append(target)
            found = self._stream(pruned, site, watched)
            # The first token is attended to by all others for want of anything better, and is like no other.
            mask = counted_positions(pruned.inputs)
            mask = (mask & (mask.cumsum(dim=1) > 1)).to(target.device)
            yield Seen(
                {path: value[mask] for path, value in found.given.items()},
                {path: value[mask] for path, value in found.put_out.items()},
                found.behind(site.sublayers[-1].id, self.scales[site.point.position])[mask],
                target.float()[mask],
                held_back(numbers).to(mask.device)[:, None].expand_as(mask)[mask],
            )

    def pass_by(self, site: Site) -> None:
        """Let the dense model pass a site's block, ahead of a change of its weights that is known."""
        end = site.point.position + 1
        for dense, _ in self._pairs:
            if (at := dense.trace.start(end)) < end:
                with self._teacher.restored():
                    dense.trace.advance(dense.blocks, at, end, dense.logits)
                self._ran(end - at, site)

    def _target(self, dense: Portion, site: Site) -> Tensor:
        """The dense stream at the target of a site; the dense model has passed the site's block then."""
        here, target = site.point.position, site.target
        watched = watched_block(self._model, self._dense, target.position) if target.between else nullcontext()
        with watched as found:
            if (at := dense.trace.start(here + 1)) <= here:
                dense.trace.advance(dense.blocks, at, here + 1, dense.logits)
            state = dense.trace.states[here]
            if target.position > here:
                state = dense.trace.fork(dense.blocks, here + 1, target.position + 1, dense.logits)
        self._ran(target.position + 1 - at, site)
        if found is None:
            return first_tensor(state)
        return found.behind(SublayerId(self._dense.blocks[target.position], "attention"), self.scales[target.position])

    def _stream(self, pruned: Portion, site: Site, watched: Sequence[str]) -> BlockStream:
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
        """How many blocks of each batch run in all; sites with a norm behind them are observed twice."""
        if not self.sites:
            return 0
        ahead = sum(site.target.position - site.point.position for site in self.sites)
        again = sum(site.sublayers[0].form in (SANDWICH, AFTER_BRANCH) for site in self.sites)
        return 2 * self.sites[-1].point.position + 1 + ahead + len(self.sites) + again

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
