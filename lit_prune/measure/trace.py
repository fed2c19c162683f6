"""What the blocks returned for one batch, kept so that only what changed is computed again.

The blocks before the first that changed pass on a stored state, so embedding, masks, rotary tables, final norm and head
stay the model's own code and no architecture needs a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Trace:
    """The outputs of a model's first blocks for one batch: a tensor each, or a tuple with the hidden state first.

    Attributes:
        states: Of block 0, 1 and so on, as many as hold for the model as it is.
    """

    def __init__(self) -> None:
        self.states: list[Any] = []

    def cut(self, position: int) -> None:
        """Forget what comes from a block that changed, and from those behind it."""
        del self.states[position:]

    @property
    def num_bytes(self) -> int:
        """Memory of the states."""
        tensors = [each for state in self.states for each in (state if isinstance(state, tuple) else (state,))]
        return sum(each.nbytes for each in tensors if isinstance(each, Tensor))

    def extend(self, blocks: Sequence[nn.Module], length: int, run: Callable[[], Any]) -> Any:
        """Run the model from the first block that is not known until `length` outputs are.

        Args:
            blocks: Of the model.
            length: Outputs that are wanted; of all blocks, to run on through the head.
            run: Calls the model on the batch.

        Returns:
            What `run` returned, None where the model was stopped before its end.
        """
        with resumed(blocks, self.states, len(self.states)), self._recorded(blocks, length):
            try:
                return run()
            except _Enough:
                return None

    @contextmanager
    def _recorded(self, blocks: Sequence[nn.Module], length: int) -> Iterator[None]:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            self.states.append(output)
            if len(self.states) == length < len(blocks):
                raise _Enough

        handles = [block.register_forward_hook(record) for block in blocks[len(self.states) :]]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Enough(Exception):
    """Ends a forward pass whose remaining blocks nobody wants."""


@contextmanager
def resumed(blocks: Sequence[nn.Module], states: Sequence[Any], first: int) -> Iterator[None]:
    """Compute from block `first` on: the blocks before it return the stored state instead of computing."""
    before, state = blocks[:first], states[first - 1] if first else None
    # Others, accelerate for one, put a `forward` on the instance as well; it comes back.
    replaced = [block.__dict__.get("forward") for block in before]
    try:
        for block in before:
            # An attribute of the instance is found before the class's method.
            block.__dict__["forward"] = lambda *args, **kwargs: state
        yield
    finally:
        for block, forward in zip(before, replaced, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward
