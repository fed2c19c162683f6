"""What would the loss be without this sublayer? Asked for many sublayers over one set of tokens.

Nothing is computed twice: the states before the first changed block are carried, within a round and from one to the
next, and the loss of a model that was measured as a candidate is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import Anatomy, find_sublayers, language_model
from lit_prune.errors import LitPruneError
from lit_prune.loading.devices import bytes_held
from lit_prune.measure.batch_pass import BatchPass, Place, Wanted
from lit_prune.measure.batches import input_ids_of, on_device
from lit_prune.measure.halves import measured
from lit_prune.measure.head import Compute
from lit_prune.measure.journal import Journal, Key
from lit_prune.measure.losses import Losses, finite_mean, require_context, require_tokens
from lit_prune.measure.objective import objective_of
from lit_prune.measure.trace import Trace
from lit_prune.measure.weights import Weights
from lit_prune.plan.prune_plan import Candidate, SublayerId
from lit_prune.surgery import evaluating, is_sharded

Progress = Callable[[int, int, str], None]
Reduce = Callable[[Tensor], Tensor]

STATES_SHARE = 0.1
"""Of the model's own memory: what states of earlier rounds may take unless the caller says otherwise."""


class WhatIf:
    """Measures losses of one model over fixed batches, and counts the work.

    Args:
        model: A causal language model or sequence classifier, perhaps wrapped by peft; it may be pruned and trained
            between measurements.
        batches: Dicts with `input_ids` [batch, seq], perhaps `labels` and `attention_mask`.
        reduce: Sums a tensor over processes; identity for one process.
        autocast: Makes the context in which the model runs, such as a trainer's precision context.
        progress: Called with (blocks done, blocks in all, what is measured).
        journal: Where measurements are kept, and found when they were made before; in memory by default.
        max_state_bytes: The most memory for states that are kept from round to round; a tenth of the model's own when
            None. One batch's states are held in any case while it is measured.
        name: Of one `beside` another, whose journal it shares.
        forks: Candidates that share one pass through the blocks behind all of them: more work at a time for a GPU, and
            memory for as many logits.
        offload: Spare the device's memory: hold states in the CPU's, fetch the one that a measurement starts from, and
            run the head on a few positions at a time.

    Attributes:
        objective: What its loss is.
        num_block_evaluations: Decoder blocks computed so far, per batch of sequences.
        num_head_evaluations: Losses computed so far, per batch of sequences.
        most_sequences: That memory was found to have room for at a time; infinite until it was too small.

    Raises:
        AnatomyError: The model is for something else than text.
        DataError: There are no batches, one has no `input_ids`, or all labels are masked.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        *,
        reduce: Reduce | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        progress: Progress | None = None,
        journal: Journal | None = None,
        max_state_bytes: int | None = None,
        name: str = "",
        forks: int = 1,
        offload: bool = False,
    ) -> None:
        self.model = language_model(model)
        self.objective = objective_of(self.model)
        self.batches = self.objective.read(batches)
        self._share = 1.0
        self.num_block_evaluations = 0
        self.num_head_evaluations = 0
        self._reduce = reduce or (lambda tensor: tensor)
        self._autocast = autocast
        self._progress = progress or (lambda done, total, what: None)
        self._journal = Journal() if journal is None else journal
        self._max_state_bytes = max_state_bytes
        self._name = name
        self._beside: dict[str, WhatIf] = {}
        self.forks = forks
        self.most_sequences = math.inf
        self._offload = offload
        self._traces: dict[Place, Trace] = {}
        self._anatomy: Anatomy | None = None
        self._weights = Weights()
        self._num_corrections = 0
        if forks < 1 or (forks > 1 and offload):
            raise LitPruneError(f"forks is a number of candidates, 1 or more, and 1 with offload; found {forks}")
        require_tokens([self.objective.num_targets(each) for each in self.batches], self._reduce)
        require_context(self.model, self.num_positions)

    @property
    def cost(self) -> float:
        """Work so far in dense forward passes over the batches; embedding and head are not counted apart."""
        own = self.num_block_evaluations / (len(self.batches) * len(find_sublayers(self.model).blocks))
        return own + sum(each.cost for each in self._beside.values())

    @property
    def counts(self) -> tuple[int, int]:
        """Decoder blocks and losses computed so far."""
        return self.num_block_evaluations, self.num_head_evaluations

    @counts.setter
    def counts(self, counts: tuple[int, int]) -> None:
        self.num_block_evaluations, self.num_head_evaluations = counts

    @property
    def num_positions(self) -> int:
        """Length of the longest calibration sequence."""
        return max(input_ids_of(batch).shape[1] for batch in self.batches)

    @contextmanager
    def narrowed(self, share: float) -> Iterator[WhatIf]:
        """Measure on the first batches alone, a share of all of them, in a `with` block."""
        self._share = share
        try:
            yield self
        finally:
            self._share = 1.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode without gradients, in the precision of the measure, in a `with` block."""
        with evaluating(self.model), self._autocast():
            yield

    def passes(self, num_each: int = 1) -> Iterator[dict[str, Tensor]]:
        """The batches on the model's device, for one run of the whole model on each, which is counted as work.

        Args:
            num_each: Dense passes that what is done with a batch costs.
        """
        num_blocks = num_each * len(find_sublayers(self.model).blocks)
        for number, batch in enumerate(self.used):
            self._progress(number * num_blocks, len(self.used) * num_blocks, "")
            yield on_device(batch, self.model.device)
            self.num_block_evaluations += num_blocks
            self.num_head_evaluations += num_each
        self._progress(len(self.used) * num_blocks, len(self.used) * num_blocks, "")

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return self._reduce(tensor)

    def beside(
        self,
        name: str,
        kind: type[WhatIf] | None = None,
        batches: Callable[[], Sequence[Mapping[str, Any]]] | None = None,
    ) -> WhatIf:
        """Another measure of the same model, made once and kept; its work is part of this one's `cost`.

        Args:
            name: Its measurements stand under this name in the journal.
            kind: Its class.
            batches: Makes its own, the same in every process; None takes those of this one.
        """
        if name not in self._beside:
            self._beside[name] = (kind or WhatIf)(
                self.model,
                self.batches if batches is None else batches(),
                reduce=self._reduce if batches is None else None,
                autocast=self._autocast,
                progress=self._progress,
                journal=self._journal if batches is None else self._journal.unshared(),
                max_state_bytes=self._max_state_bytes,
                forks=self.forks,
                offload=self._offload,
                name=name,
            )
        other = self._beside[name]
        other._share, other._num_corrections = self._share, self._num_corrections
        return other

    @property
    def used(self) -> Sequence[Mapping[str, Any]]:
        """The batches that are measured on now: all, or the first while `narrowed`."""
        return self.batches[: max(1, math.ceil(self._share * len(self.batches)))]

    def key(self, gone: frozenset[SublayerId], index: int) -> Key:
        """Of a measurement in the journal."""
        corrected = f"{self._num_corrections}c" if self._num_corrections else ""
        place = "/".join(filter(None, (self._name, corrected, self._weights.mark, str(index))))
        return gone, place if "/" in place else index

    def corrected(self) -> None:
        """Say that weights were changed on purpose, the same in every process and whenever the search goes on.

        What was measured before stays in the journal for that; nothing of it is used from here on.
        """
        self._num_corrections += 1
        self._traces.clear()
        self._weights.rebase()
        for each in self._beside.values():
            each.corrected()

    def figures(self, compute: Compute, batch: BatchPass) -> Tensor:
        """What is measured of each sequence of a batch: a sum over its predicted tokens, in nats, [batch].

        Args:
            compute: Runs the model, from a stored state and without some sublayers, for what it is given to call.
            batch: Which one, with the states of the model as it is.
        """
        return self.objective.of_pass(batch.inputs, batch.blocks, compute, in_parts=self._offload)

    def losses(self, candidates: Sequence[Candidate]) -> Losses:
        """Measure the model as it is and without each candidate, each of which is taken out alone.

        Raises:
            MeasureError: A loss is NaN or infinite; the message names what was out.
        """
        ordered = sorted(candidates)
        anatomy = self._follow_model()
        used = range(len(self.used))
        with self.running():
            rows = self._sweep(anatomy, ordered, used)
        per_sequence = torch.cat(rows, dim=1)  # [1 + candidates, sequences]
        tokens = torch.cat([self.objective.num_targets(each) for each in self.used])
        totals = self._reduce(torch.cat([per_sequence.sum(dim=1), tokens.sum()[None].to(per_sequence)]))
        num_tokens = totals[-1]
        names = ["nothing", *(each.name for each in ordered)]
        means = [finite_mean(*each) for each in zip((totals[:-1] / num_tokens).tolist(), names, strict=True)]
        return Losses(
            base=means[0],
            without=dict(zip(ordered, means[1:], strict=True)),
            base_sequences=per_sequence[0],
            sequences=dict(zip(ordered, per_sequence[1:], strict=True)),
            tokens=tokens,
            num_tokens=int(num_tokens),
        )

    def new_trace(self) -> Trace:
        """For the states of a batch."""
        return Trace(offload=self._offload, to_the_end=is_sharded(self.model))

    def _follow_model(self) -> Anatomy:
        """Cut the traces at the first block that has changed since the last measurement."""
        anatomy = find_sublayers(self.model)
        if self._weights.have_changed(self.model, self._reduce):
            self._traces.clear()
        elif self._anatomy is not None and anatomy.blocks == self._anatomy.blocks:
            changed = set(anatomy.removed) ^ set(self._anatomy.removed)
            for trace in self._traces.values():
                trace.cut(min((anatomy.position(each.block) for each in changed), default=len(anatomy.blocks)))
        else:
            self._traces.clear()
        self._anatomy = anatomy
        return anatomy

    def _sweep(self, anatomy: Anatomy, ordered: Sequence[Candidate], used: Sequence[int]) -> list[Tensor]:
        """Loss sums of every batch, [1 + candidates, batch]; one batch's states are held, more where there is room."""
        gone = frozenset(anatomy.removed)
        wanted: list[Wanted] = [(None, gone), *((each, gone | frozenset(each.sublayers)) for each in ordered)]
        passes = [BatchPass(self, anatomy, wanted, index) for index in used]
        todo, done = sum(each.num_blocks_to_do for each in passes), 0
        for each in passes:
            before = self.num_block_evaluations
            for candidates, keys in each.groups(self.forks):
                what = candidates[0].name if candidates else ""
                self._progress(done + self.num_block_evaluations - before, todo, what)
                for key, (figures, num_blocks) in zip(keys, measured(each, candidates), strict=True):
                    self._journal.put(key, figures, num_blocks)
            done += self.num_block_evaluations - before
            self._progress(done, todo, "")
            keys = [self.key(without, each.index) for _, without in wanted]
            self.num_block_evaluations += sum(map(self._journal.credit, keys))
            self._keep(each)
        return [self._rows([self.key(without, index) for _, without in wanted]) for index in used]

    def _rows(self, keys: Sequence[Key]) -> Tensor:
        # Apple's GPUs have no float64.
        device = self.model.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return torch.tensor([self._journal[key] for key in keys], dtype=dtype, device=device)

    def _keep(self, batch: BatchPass) -> None:
        limit = int(STATES_SHARE * bytes_held(self.model)) if self._max_state_bytes is None else self._max_state_bytes
        for each in batch.leaves:
            self._traces[each.place] = each.thinned(limit // (len(self.batches) * len(batch.leaves)))
