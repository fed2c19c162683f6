"""What the blocks returned for one batch, kept so that only what changed is computed again.

The blocks before the first that changed pass on a stored state, so embedding, masks, rotary tables, final norm and head
stay the model's own code and no architecture needs a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

HOST = torch.device("cpu")


class Trace:
    """Outputs of a model's blocks for one batch: a tensor each, or a tuple with the hidden state first.

    Args:
        offload: Whether states are held in the CPU's memory; one that is started from is fetched to where it was
            computed.
        to_the_end: Whether no pass is broken off: blocks that nobody wants pass on a state instead. FSDP2 wants that,
            whose hooks behind the last block would be missed.

    Attributes:
        states: What each block put out, by its number; some may be left out to save memory.
    """

    def __init__(self, *, offload: bool = False, to_the_end: bool = False) -> None:
        self.states: dict[int, Any] = {}
        self._offload = offload
        self._to_the_end = to_the_end
        self._computed_on: dict[int, torch.device] = {}

    def start(self, block: int) -> int:
        """The block from which to compute so that the state before `block` is right: itself, or the nearest before."""
        return max((number + 1 for number in self.states if number < block), default=0)

    def cut(self, position: int) -> None:
        """Forget what comes from a block that changed, and from those behind it."""
        self.states = {block: state for block, state in self.states.items() if block < position}

    def thin(self, num_bytes: int, held: int) -> None:
        """Keep every n-th state alone, with the smallest n by which states that hold `held` bytes fit into some."""
        every = max(1, -(-held // max(1, num_bytes)))
        self.states = {block: state for block, state in self.states.items() if (block + 1) % every == 0}

    def part(self, rows: slice, num: int) -> Trace:
        """The states of some of a batch's `num` sequences."""
        part = Trace(offload=self._offload)
        part._computed_on = dict(self._computed_on)
        part.states = tree_map_only(
            Tensor, lambda state: state[rows] if state.ndim and len(state) == num else state, self.states
        )
        return part

    @property
    def num_bytes(self) -> int:
        """Bytes of the states."""
        outputs = (state if isinstance(state, tuple) else (state,) for state in self.states.values())
        return sum(part.nbytes for output in outputs for part in output if isinstance(part, Tensor))

    def extend(self, blocks: Sequence[nn.Module], first: int, length: int, run: Callable[[], Any]) -> Any:
        """Run the model until `length` blocks are computed, and keep their states.

        Args:
            blocks: The decoder blocks of the model.
            first: The block to begin with; the state before it is known.
            length: How many blocks are wanted; all of them, to run on through the head.
            run: Calls the model on the batch; what it returns is returned, or None where it was stopped early.
        """
        with self.resumed(blocks, first), self.recorded(blocks, first, length):
            try:
                return run()
            except _Enough:
                return None

    def fork(self, blocks: Sequence[nn.Module], first: int, length: int, run: Callable[[], Any]) -> Any:
        """What block `length - 1` puts out when the model computes as in `extend`; no state is kept."""
        last = Trace(to_the_end=self._to_the_end)
        with self.resumed(blocks, first), last.recorded(blocks, length - 1, length, stop=True), suppress(_Enough):
            run()
        return last.states[length - 1]

    def advance(self, blocks: Sequence[nn.Module], first: int, length: int, run: Callable[[], Any]) -> None:
        """Compute as in `extend`, without final norm and head, and keep the state behind block `length - 1` alone."""
        last = Trace(offload=self._offload, to_the_end=self._to_the_end)
        with self.resumed(blocks, first), last.recorded(blocks, length - 1, length, stop=True), suppress(_Enough):
            run()
        self.states, self._computed_on = last.states, last._computed_on

    @staticmethod
    def joined(states: Sequence[Any], position: int) -> Trace:
        """A trace with the states of several forks behind block `position`, one below the other in one batch."""
        trace = Trace()
        trace.states[position] = tree_map(
            lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *states
        )
        return trace

    @contextmanager
    def resumed(self, blocks: Sequence[nn.Module], first: int) -> Iterator[None]:
        """Compute from block `first` on: the blocks before it return the stored state instead of computing."""
        state = self._fetched(first - 1) if first else None
        with _returning(blocks[:first], lambda: state):
            yield

    @contextmanager
    def recorded(self, blocks: Sequence[nn.Module], first: int, length: int, *, stop: bool = False) -> Iterator[None]:
        """Keep what blocks `first` to `length - 1` put out, and stop the model there.

        At its end it stops only where it is told to, so that final norm and head run.
        """

        def recorder(number: int) -> Callable[..., None]:
            def record(_: nn.Module, __: Any, output: Any) -> None:
                if self._offload:
                    leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
                    self._computed_on[number] = next(leaves).device
                    output = moved(output, HOST)
                self.states[number] = output
                if number + 1 == length and (stop or length < len(blocks)) and not self._to_the_end:
                    raise _Enough

            return record

        handles = [blocks[number].register_forward_hook(recorder(number)) for number in range(first, length)]
        unwanted = blocks[length:] if self._to_the_end else ()
        try:
            with _returning(unwanted, lambda: self._fetched(length - 1)):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _fetched(self, block: int) -> Any:
        state = self.states[block]
        return moved(state, self._computed_on[block]) if self._offload else state


@contextmanager
def _returning(blocks: Sequence[nn.Module], state: Callable[[], Any]) -> Iterator[None]:
    """Let blocks return a state instead of computing."""
    # Others, accelerate for one, put a `forward` on the instance as well; it comes back.
    replaced = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            # An attribute of the instance is found before the class's method.
            block.__dict__["forward"] = lambda *args, **kwargs: state()
        yield
    finally:
        for block, forward in zip(blocks, replaced, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward


def moved(state: Any, device: torch.device) -> Any:
    """A block's output with its tensors on a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), state)


class _Enough(Exception):
    """Ends a forward pass whose remaining blocks nobody wants."""
