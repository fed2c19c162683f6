"""What is written into the residual stream, in the order in which it happens, while the model runs once on a batch.

States are copies, in the model's own dtype, of one batch: as many as there are sublayers. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import PARALLEL_FORMS, Anatomy, Sublayer, is_norm
from lit_prune.plan import SublayerId
from lit_prune.surgery import added_to_stream, first_tensor, hidden_states, is_linear


@dataclass(frozen=True)
class Written:
    """What a sublayer that reads `before` adds: a sum of states minus a sum of others, all [batch, seq, hidden].

    Nothing between the states is left out.
    """

    sublayer: SublayerId
    before: Tensor
    plus: tuple[Tensor, ...]
    minus: tuple[Tensor, ...] = ()

    def added(self, mask: Tensor) -> Tensor:
        """What was added at some positions, float32 [positions, hidden]; `mask` is bool [batch, seq]."""
        total = self.plus[0][mask].float()
        for state in self.plus[1:]:
            total = total + state[mask].float()
        for state in self.minus:
            total = total - state[mask].float()
        return total


@dataclass(frozen=True)
class Passed:
    """The whole stream goes through a module: a norm between sublayers of post-norm blocks, final norm, head."""

    path: str
    before: Tensor
    after: Tensor


class StreamRecorder:
    """Hooks that note how the residual stream comes about.

    Attributes:
        events: What happened in the blocks, in order.
        states: The stream before the first block and behind every block, [batch, seq, hidden].
        tail: What the last state goes through on its way to the logits.
        last_output: What the last block returned, in its own form.
    """

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self.events: list[Written | Passed] = []
        self.states: list[Tensor] = []
        self.tail: list[Passed] = []
        self.last_output: Any = None
        self._model = model
        self._anatomy = anatomy
        self._shape = torch.Size()
        self._state = torch.empty(0)
        self._running: SublayerId | None = None
        self._beside: Tensor | None = None
        self._has_read = False

    @contextmanager
    def recording(self, shape: torch.Size) -> Iterator[None]:
        """Note what the model does in a `with` block; `shape` is [batch, seq]."""
        self.events, self.states, self.tail, self._shape = [], [], [], shape
        handles: list[Any] = []
        try:
            for position, block in enumerate(self._anatomy.block_list(self._model)):
                handles += self._watch_block(position, block)
            for path, module in self._model.named_modules():
                if not path.startswith(f"{self._anatomy.blocks_path}.") and (is_norm(module) or is_linear(module)):
                    handles.append(module.register_forward_hook(self._in_tail(path)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch_block(self, position: int, block: nn.Module) -> list[Any]:
        number = self._anatomy.blocks[position]
        present = [sublayer for sublayer in self._anatomy.sublayers if sublayer.id.block == number]
        together = len(present) == 2 and present[0].form in PARALLEL_FORMS
        handles: list[Any] = [self._before(block, self._enter)]
        for norm in self._staying_norms(block, position, present):
            handles += self._watch_norm(norm)
        if together:
            hook = self._leave_parallel(present[0])
            handles.append(self._model.get_submodule(present[0].output).register_forward_hook(hook, with_kwargs=True))
        elif len(present) == 2:
            # Of the several modules of the second sublayer, the first that runs reads the stream.
            handles += [self._before(self._model.get_submodule(part.path), self._read) for part in present[1].parts]
        for sublayer in () if together else present:
            handles.append(self._before(self._model.get_submodule(sublayer.path), partial(self._start, sublayer.id)))
        leave = self._leave([sublayer.id for sublayer in present] if together else [])
        return [*handles, block.register_forward_hook(leave)]

    def _staying_norms(self, block: nn.Module, position: int, present: Sequence[Sublayer]) -> list[str]:
        """Norms of a block that belong to no sublayer: the stream itself goes through them."""
        shared = self._anatomy.shared[self._anatomy.blocks[position]]
        owned = {part.path for part in (*shared, *(part for sublayer in present for part in sublayer.parts))}
        path = f"{self._anatomy.blocks_path}.{position}"
        norms = [f"{path}.{name}" for name, child in block.named_children() if is_norm(child)]
        return [norm for norm in norms if norm not in owned]

    def _watch_norm(self, path: str) -> list[Any]:
        def leave(_: Any, args: Any, output: Any) -> None:
            before = self._state
            self._state = self._copied(output)
            self.events.append(Passed(path, before, self._state))

        module = self._model.get_submodule(path)
        return [self._before(module, self._arrive), module.register_forward_hook(leave)]

    def _enter(self, hidden: Tensor) -> None:
        self._has_read, self._running, self._beside = False, None, None
        if not self.states:
            self._state = self._copied(hidden)
            self.states.append(self._state)

    def _start(self, sublayer: SublayerId, _: Tensor) -> None:
        self._running = sublayer

    def _read(self, hidden: Tensor) -> None:
        if not self._has_read:
            self._has_read = True
            self._arrive(hidden)

    def _arrive(self, hidden: Tensor) -> None:
        """The stream is seen: what changed since it was seen last is what ran meanwhile has written."""
        if self._running is not None:
            after = self._copied(hidden)
            self.events.append(Written(self._running, self._state, (after,), (self._state,)))
            self._state, self._running = after, None

    def _leave_parallel(self, attention: Sublayer) -> Callable[..., None]:
        def note(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            self._beside = self._copied(added_to_stream(attention, args, kwargs, output))

        return note

    def _leave(self, together: Sequence[SublayerId]) -> Callable[..., None]:
        def leave(_: Any, args: Any, output: Any) -> None:
            before = self._state
            if together:
                assert self._beside is not None
                after, beside = self._copied(first_tensor(output)), self._beside
                self.events.append(Written(together[0], before, (beside,)))
                self.events.append(Written(together[1], before, (after,), (before, beside)))
                self._state = after
            self._arrive(first_tensor(output))
            self.states.append(self._state)
            self.last_output = output

        return leave

    def _in_tail(self, path: str) -> Callable[..., None]:
        def note(_: Any, args: Any, output: Any) -> None:
            if len(self.states) > len(self._anatomy.blocks):
                self.tail.append(Passed(path, args[0], output))

        return note

    def _before(self, module: nn.Module, function: Callable[[Tensor], None]) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            function(hidden_states(args, kwargs))

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _copied(self, hidden: Tensor) -> Tensor:
        """A copy, as some blocks add in place: [batch, seq, hidden]."""
        return hidden.reshape(*self._shape, -1).clone()
