"""What teaches a pruned model: the dense one inside it, which takes no second copy of the weights, or another model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import Record, decoder_config, find_sublayers, own_parameters
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.healing.lora import adapters_off
from lit_prune.measure import model_inputs
from lit_prune.plan import SublayerId
from lit_prune.surgery import evaluating, make_recorded_biases, record_bias, remove, set_cache


class Teacher(ABC):
    """What a healing learns from, beside the text.

    Attributes:
        student: The model that learns.
    """

    student: Any

    @abstractmethod
    def teaching(self) -> AbstractContextManager[Any]:
        """The model that teaches, in evaluation mode, in a `with` block in which the student does not run."""

    @abstractmethod
    def outputs(self, batch: Mapping[str, Any], *, hidden_states: bool = False) -> Any:
        """What the teacher puts out for a batch, without gradients."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move what is kept beside the student to a device."""

    def keep(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take note of weights of the student that will be trained, which a teacher may share; not of adapters."""
        return


class OtherTeacher(Teacher):
    """Another model that teaches, as it is: one that was trained further, or a larger one, with the same tokens.

    It may have more or fewer rows of padding behind the tokens: see `require_same_tokens`. Its hidden states are not
    the student's to learn.

    Args:
        model: The model that teaches.
        student: The model that learns.
    """

    def __init__(self, model: Any, student: Any) -> None:
        self.student = student
        self._model = model.eval().requires_grad_(False)

    def teaching(self) -> AbstractContextManager[Any]:
        """The model, as it is."""
        return nullcontext(self._model)

    def outputs(self, batch: Mapping[str, Any], *, hidden_states: bool = False) -> Any:
        """What the teacher puts out for a batch, without gradients.

        Raises:
            LitPruneError: Hidden states are wanted.
        """
        if hidden_states:
            raise LitPruneError("another model's hidden states are not the student's to learn: leave `hidden` at 0")
        with torch.no_grad():
            return self._model(**model_inputs(self._model, batch), use_cache=False)

    def to(self, device: torch.device) -> None:
        """Move the teacher to a device."""
        self._model.to(device)


def require_same_tokens(teachers: Mapping[str, int], students: Mapping[str, int]) -> None:
    """Refuse with a ModelError a teacher to whom the student's ids mean something else.

    Both are ids by token, as tokenizers' `get_vocab` has them; the teacher may have more.
    """
    theirs, own = ({number: token for token, number in meant.items()} for meant in (teachers, students))
    if other := sorted(number for number, token in own.items() if theirs.get(number) != token):
        first = other[0]
        raise ModelError(
            f"a teacher must have the student's tokens, and {len(other):,} of {len(own):,} are others: the id {first} "
            f"is {theirs.get(first)!r} to the teacher and {own[first]!r} to the student"
        )


class DenseTeacher(Teacher):
    """A model as it is now, brought back for as long as a `with` block lasts from what pruning will have made of it.

    What is kept beside the student: the sublayers that it has lost since, and the dense values of weights that differ.

    Args:
        model: A causal language model, which becomes the `student`, in place.
        adapted: Whether adapters that the model has now are part of what teaches; else it teaches without any.
    """

    def __init__(self, model: Any, *, adapted: bool = False) -> None:
        anatomy = find_sublayers(model)
        self.student = model
        self._adapted, self._anatomy = adapted, anatomy
        parts = anatomy.parts(sublayer.id for sublayer in anatomy.sublayers)
        self._parts = [(part.path, model.get_submodule(part.path)) for part in parts]
        self._dense: dict[int, tuple[nn.Parameter, Tensor]] = {}

    @classmethod
    def of_pruned(cls, dense: Any, pruned: Any) -> DenseTeacher:
        """The teacher of a model that was pruned before.

        The student is `dense`, a copy from before, with the removals and weights of `pruned`, which is only read.

        Raises:
            ModelError: The two are not of one model.
        """
        anatomy, smaller = find_sublayers(dense), find_sublayers(pruned)
        facts = [(found.model_type, found.num_blocks, found.hidden_size) for found in (anatomy, smaller)]
        if anatomy.removed or facts[0] != facts[1]:
            raise ModelError(
                f"the teacher must be the dense model that was pruned: a {facts[1][0]} of {facts[1][1]} blocks and "
                f"width {facts[1][2]}; found a {facts[0][0]} of {facts[0][1]}, width {facts[0][2]}, "
                f"{len(anatomy.removed)} sublayers removed"
            )
        teacher = cls(dense)
        weights = _by_original_name(pruned)
        remove(dense, smaller.removed)
        for name, path in Record.of(decoder_config(pruned)).biases.items():
            record_bias(dense, SublayerId.parse(name), path)
        make_recorded_biases(dense)
        for name, parameter in dense.named_parameters():
            if name not in weights or weights[name].shape != parameter.shape:
                raise ModelError(f"the teacher must be the dense model that was pruned: {name} is not in both")
            if not torch.equal(weights[name].to(parameter), parameter):
                teacher.keep([parameter])
                parameter.data.copy_(weights[name])
        return teacher

    @property
    def num_extra_parameters(self) -> int:
        """The number of parameters that are held beside the student's."""
        taken = {parameter for _, module in self._taken for parameter in module.parameters()}
        gone = sum(parameter.numel() for parameter in taken - {*self.student.parameters()})
        return gone + sum(value.numel() for _, value in self._dense.values())

    def keep(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember the dense values of weights of the student that will be trained; not of adapters."""
        for parameter in parameters:
            self._dense.setdefault(id(parameter), (parameter, parameter.detach().clone()))

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Remember the dense values of weights that are changed in a `with` block; not of adapters.

        Whatever changes them, in place: a compensation, a checkpoint that is loaded. Copies of the others are held in
        main memory while the block lasts.
        """
        noted = [each for _, each in own_parameters(self.student) if id(each) not in self._dense]
        before = [parameter.detach().to("cpu", copy=True) for parameter in noted]
        try:
            yield
        finally:
            for parameter, value in zip(noted, before, strict=True):
                value = value.to(parameter.dtype)  # a trainer may have cast the model
                if not torch.equal(value, parameter.detach().cpu()):
                    self._dense[id(parameter)] = (parameter, value.to(parameter.device))

    @contextmanager
    def restored(self) -> Iterator[Any]:
        """The dense model, in evaluation mode and without gradients, in a `with` block."""
        taken = self._taken
        stubs = [(path, self.student.get_submodule(path)) for path, _ in taken]
        learned = [(parameter, parameter.data) for parameter, _ in self._dense.values()]
        put_back = set_cache(self.student, self._anatomy)
        try:
            self._place(taken)
            for parameter, value in self._dense.values():
                # Removed sublayers stay where they were made, the student may have moved.
                parameter.data = value.to(parameter.device)
            with nullcontext() if self._adapted else adapters_off(self.student), evaluating(self.student):
                yield self.student
        finally:
            put_back()
            self._place(stubs)
            for parameter, value in learned:
                parameter.data = value

    def teaching(self) -> AbstractContextManager[Any]:
        """The dense model, as `restored` brings it back."""
        return self.restored()

    def outputs(self, batch: Mapping[str, Any], *, hidden_states: bool = False) -> Any:
        """What the dense model puts out for a batch; call it before the student runs, not between that and backward."""
        with self.restored() as dense:
            return dense(**model_inputs(dense, batch), use_cache=False, output_hidden_states=hidden_states)

    def to(self, device: torch.device) -> None:
        """Move what is kept beside the student to a device."""
        for _, module in self._taken:
            module.to(device)
        self._dense = {key: (parameter, value.to(device)) for key, (parameter, value) in self._dense.items()}

    @property
    def _taken(self) -> list[tuple[str, nn.Module]]:
        """What another module stands for now, by path."""
        return [(path, module) for path, module in self._parts if self.student.get_submodule(path) is not module]

    def _place(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        for path, module in modules:
            self.student.set_submodule(path, module)


def _by_original_name(pruned: Any) -> dict[str, Tensor]:
    """Weights of a model by the names they have where no block has left the list."""
    anatomy = find_sublayers(pruned)
    prefix = f"{anatomy.blocks_path}."
    found = {}
    for name, parameter in pruned.named_parameters():
        if name.startswith(prefix):
            position, _, rest = name.removeprefix(prefix).partition(".")
            name = f"{prefix}{anatomy.blocks[int(position)]}.{rest}"
        found[name] = parameter.detach()
    return found
